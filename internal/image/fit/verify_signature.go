package fit

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// mark is one signature node of a configuration, read.
type mark struct {
	node    int
	name    string
	algo    string
	hint    string
	padding string
	value   []byte
	sum     crypto.Hash
	family  string // "rsa2048", "ecdsa256"
	strings int64  // signed bytes of the strings block
	claimed []string
	id      alg.ID
	unusual string // why it cannot be checked at all: U-Boot's words
}

func (m mark) shown() string { return m.algo + ":" + m.hint }

func (r *verifier) read(s int) (mark, error) {
	t := r.tree
	m := mark{node: s, name: t.nodes[s].name}
	var err, e error
	var hasAlgo bool
	if m.algo, hasAlgo, err = t.text(s, propAlgo); err != nil {
		return m, err
	}
	m.hint, _, err = t.text(s, propHint)
	m.padding, _, e = t.text(s, propPadding)
	if err = cmp.Or(err, e); err != nil {
		return m, err
	}
	if m.value, err = t.value(s, propValue); err != nil {
		return m, err
	}
	if m.claimed, err = t.texts(s, propNodes); err != nil {
		return m, err
	}
	hs, err := t.value(s, propStrings)
	if err != nil {
		return m, err
	}
	m.algo, m.hint, m.padding = clip(m.algo), clip(m.hint), clip(m.padding)
	sum, family, _ := strings.Cut(m.algo, ",")
	m.family = family
	m.sum = map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[sum]
	known := slices.Contains([]string{"rsa2048", "rsa3072", "rsa4096", "ecdsa256", "ecdsa384"}, family)
	switch {
	case !hasAlgo:
		m.unusual = "Can't get hash algo property"
	case m.sum == 0 || !known || m.padding != "" && m.padding != paddingPKCS && m.padding != paddingPSS:
		m.unusual = "Unknown signature algorithm"
	case len(m.value) == 0:
		m.unusual = "Can't get hash value property"
	case hs != nil && len(hs) < 8:
		m.unusual = "Invalid hashed-strings property"
	}
	if len(hs) >= 8 {
		m.strings = int64(binary.BigEndian.Uint32(hs[4:]))
		if m.strings > t.strLen {
			m.unusual = "Strings region is out of bounds"
		}
	}
	switch {
	case family == "ecdsa256" && sum == "sha256":
		m.id = alg.ECDSAP256SHA256
	case family == "ecdsa384" && sum == "sha384":
		m.id = alg.ECDSAP384SHA384
	case strings.HasPrefix(family, "rsa") && m.padding == paddingPSS:
		m.id = alg.ID(family + "-pss-" + sum)
	case strings.HasPrefix(family, "rsa"):
		m.id = alg.ID(family + "-pkcs1-" + sum)
	}
	if _, err := alg.Lookup(m.id); err != nil {
		m.id = ""
	}
	return m, nil
}

// lacks says whether the device has no code for this scheme.
func (d device) lacks(m mark) bool {
	return m.padding == paddingPSS && !d.pss || strings.HasPrefix(m.family, "ecdsa") && !d.ecdsa
}

// rebuilt is the node list of a configuration: what must be under the signature.
// words is U-Boot's complaint when it cannot be made.
func (r *verifier) rebuilt(conf int, used []int, verity bool) (inc map[string]bool, count int, words string) {
	t := r.tree
	inc = map[string]bool{"/": true, t.nodes[conf].path: true}
	count = 2
	paths := 3 + len(t.nodes[conf].path)
	put := func(n int) {
		count++
		paths += len(t.nodes[n].path) + 1
		inc[t.nodes[n].path] = true
	}
	if len(used) == 0 {
		return inc, count, fmt.Sprintf("No images in config '%s'", t.nodes[conf].name)
	}
	for _, im := range used {
		put(im)
		hashes := 0
		for _, c := range t.nodes[im].children {
			switch n := t.nodes[c].name; {
			case strings.HasPrefix(n, hashNode):
				hashes++
				put(c)
			case n == cipherNode, n == verityNode && verity:
				put(c)
			}
		}
		if hashes == 0 {
			return inc, count, fmt.Sprintf("No hash nodes in image '%s'", t.nodes[im].name)
		}
	}
	if count > deviceMaxNodes || paths > deviceMaxPaths {
		return inc, count, "Failed to build hash node list"
	}
	return inc, count, ""
}

// digest hashes what a signature covers under a node list.
func (r *verifier) digest(m mark, inc map[string]bool) (sum []byte, namesCovered bool, err error) {
	runs, named := r.tree.signedRuns(inc, m.strings)
	if m.strings > 0 {
		runs = append(runs, image.Range{Off: r.tree.stringsOff, Len: m.strings})
	}
	h := m.sum.New()
	err = r.tree.pour(r.ctx, h, runs)
	return h.Sum(nil), named, err
}

// fits checks one signature with one key, as the arithmetic is.
func (m mark) fits(a anchor, sum []byte, anySalt bool) bool {
	switch k := a.pub.(type) {
	case *rsa.PublicKey:
		if m.family != "rsa"+strconv.Itoa(a.bits) || len(m.value) != a.bits/8 {
			return false
		}
		if m.padding == paddingPSS {
			salt := rsa.PSSSaltLengthEqualsHash
			if anySalt {
				salt = rsa.PSSSaltLengthAuto
			}
			return rsa.VerifyPSS(k, m.sum, sum, m.value, &rsa.PSSOptions{SaltLength: salt}) == nil
		}
		return rsa.VerifyPKCS1v15(k, m.sum, sum, m.value) == nil
	case *ecdsa.PublicKey:
		size := map[string]int{"ecdsa256": 32, "ecdsa384": 48}[m.family]
		if size == 0 || len(m.value) != 2*size || (k.Curve == elliptic.P256()) != (size == 32) {
			return false
		}
		return ecdsa.Verify(k, sum, new(big.Int).SetBytes(m.value[:size]), new(big.Int).SetBytes(m.value[size:]))
	}
	return false
}

// salted says whether the key made a PSS signature for this digest with a salt
// of another length than the hash's.
func (m mark) salted(a anchor, sum []byte) bool {
	k, ok := a.pub.(*rsa.PublicKey)
	return ok && m.padding == paddingPSS && len(m.value) == a.bits/8 &&
		rsa.VerifyPSS(k, m.sum, sum, m.value, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
}

// made says whether the key made the signature for whatever content, where the
// scheme shows it: a PKCS #1 signature opened with the right key has the fixed
// padding. The digest that was signed comes with it.
func (m mark) made(a anchor) (signed []byte, yes bool) {
	k, ok := a.pub.(*rsa.PublicKey)
	if !ok || m.padding == paddingPSS || len(m.value) != a.bits/8 || m.sum == 0 {
		return nil, false
	}
	x := new(big.Int).SetBytes(m.value)
	if x.Cmp(k.N) >= 0 {
		return nil, false
	}
	em := x.Exp(x, big.NewInt(int64(k.E)), k.N).FillBytes(make([]byte, len(m.value)))
	n := m.sum.Size()
	if em[0] != 0 || em[1] != 1 || len(em) < n+32 {
		return nil, false
	}
	for _, b := range em[2 : len(em)-n-32] {
		if b != 0xff {
			return nil, false
		}
	}
	return em[len(em)-n:], true
}

// configuration judges one configuration: whether signatures and data are right,
// and whether the device would run it.
func (r *verifier) configuration(conf int) (valid, accepted bool, err error) {
	t := r.tree
	used, err := r.used(conf)
	if err != nil {
		return false, false, err
	}
	dataOK, dataStrong := true, true
	for _, im := range used {
		if err := r.image(im); err != nil {
			return false, false, err
		}
		dataOK, dataStrong = dataOK && r.good[im], dataStrong && r.strong[im]
	}
	inc, count, words := r.rebuilt(conf, used, r.dev.verity)
	marks, err := r.marks(conf)
	if err != nil {
		return false, false, err
	}
	if words != "" && len(marks) > 0 {
		r.add(image.Finding{
			Stage: image.StageCoverage, Severity: image.Fatal, Code: problem.SigCoverage, Range: r.at(conf),
			What:   fmt.Sprintf("the nodes that the signature of %s must cover cannot be listed", t.nodes[conf].name),
			Actual: words, Device: append([]string{words}, r.complaint("Failed to build hash node list", conf, -1)...),
			Cause: "an image without a hash node is not covered by any configuration signature, and a list may have 100 nodes",
			Next:  "build the FIT with hash-1 { algo = \"sha256\"; } in each image, or sign with hashes: fill",
		})
		if !r.dev.TrustsHashedNodes {
			for _, m := range marks {
				r.v.Signatures = append(r.v.Signatures, image.SignatureInfo{Slot: t.nodes[conf].name, Alg: m.id, KeyHint: m.hint, Range: r.at(m.node)})
			}
			return false, dataOK && !r.requires(), nil
		}
	}
	res := make([]result, len(marks))
	for i, m := range marks {
		if res[i], err = r.check(conf, used, m, inc, count, words); err != nil {
			return false, false, err
		}
	}
	sigValid, sigAccepted := r.decide(conf, marks, res)
	return sigValid && dataOK && dataStrong && words == "", sigAccepted && dataOK, nil
}

func (r *verifier) marks(conf int) ([]mark, error) {
	sigs := r.signaturesOf(conf)
	if len(sigs) > maxSignaturesPer {
		n := r.tree.nodes[conf]
		return nil, broken(problem.ImageMalformed, n.off, n.end-n.off, "the configuration %s has more than %d signatures", n.name, maxSignaturesPer)
	}
	var out []mark
	for _, s := range sigs {
		m, err := r.read(s)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// result is what one signature node is worth.
type result struct {
	by      map[int]bool // keys whose signature it is, over all that must be covered
	runs    map[int]bool // keys by which the device takes it for right
	changed int          // a key that made it for other content; -1 if none
	signed  []byte       // the digest that was signed then
	sum     []byte       // the digest of what is there
	old     int          // a key by which it is right for the image's own node list; -1
	salt    bool         // it is right but for the length of its PSS salt
	verity  bool         // it is right for a U-Boot that treats dm-verity nodes the other way
}

// check tries one signature with every key.
func (r *verifier) check(conf int, used []int, m mark, inc map[string]bool, count int, words string) (result, error) {
	t := r.tree
	res := result{by: map[int]bool{}, runs: map[int]bool{}, changed: -1, old: -1}
	info := image.SignatureInfo{Slot: t.nodes[conf].name, Alg: m.id, KeyHint: m.hint, Range: span(t.prop(m.node, propValue))}
	if info.Range == nil {
		info.Range = r.at(m.node)
	}
	no := false
	info.Valid = &no
	defer func() { r.v.Signatures = append(r.v.Signatures, info) }()
	if m.unusual != "" {
		return res, nil
	}
	sum, named, err := r.digest(m, inc)
	if err != nil {
		return res, err
	}
	res.sum = sum
	claimed := map[string]bool{}
	for _, s := range m.claimed {
		claimed[s] = true
	}
	same := len(claimed) == len(inc)
	for s := range inc {
		same = same && claimed[s]
	}
	var oldSum, altSum []byte
	if len(m.claimed) > 0 && !same {
		if oldSum, _, err = r.digest(m, claimed); err != nil {
			return res, err
		}
	}
	if other, _, w := r.rebuilt(conf, used, !r.dev.verity); w == "" && len(other) != len(inc) {
		if altSum, _, err = r.digest(m, other); err != nil {
			return res, err
		}
	}
	runs, _ := t.signedRuns(inc, 0)
	scattered := len(runs) >= 20+7*count-2
	for i, a := range r.keys {
		if words == "" && m.fits(a, sum, r.dev.anySalt) {
			if !scattered && a.takes(m) {
				res.runs[i] = true
			}
			info.KeyID = a.id
			if named && m.sum != crypto.SHA1 {
				res.by[i] = true
				yes := true
				info.Valid = &yes
			}
			continue
		}
		if words == "" && m.salted(a, sum) {
			res.salt = true
			continue
		}
		if oldSum != nil && m.fits(a, oldSum, r.dev.anySalt) {
			res.old = i
			if r.dev.TrustsHashedNodes && a.takes(m) {
				res.runs[i] = true
			}
		}
		if altSum != nil && m.fits(a, altSum, r.dev.anySalt) {
			res.verity = true
		}
		if s, yes := m.made(a); yes {
			res.changed, res.signed = i, s
		}
	}
	at := span(t.prop(m.node, propStrings))
	if len(res.runs) > 0 && !named {
		r.add(image.Finding{
			Stage: image.StageCoverage, Severity: image.Fatal, Code: problem.SigCoverage, Range: at,
			What:     fmt.Sprintf("names of signed properties are outside what %s covers", m.name),
			Expected: fmt.Sprintf("hashed-strings over %d bytes", t.strLen), Actual: fmt.Sprintf("%d bytes", m.strings),
			Cause: "the signer did not cover the strings block: properties can be renamed", Next: "sign with a tool that writes hashed-strings",
		})
	}
	if len(res.runs) > 0 && m.sum == crypto.SHA1 {
		r.add(image.Finding{
			Stage: image.StagePolicy, Severity: image.Fatal, Code: problem.AlgWeak, Range: span(t.prop(m.node, propAlgo)),
			What:     fmt.Sprintf("%s of %s is made with SHA-1", m.name, t.nodes[conf].name),
			Expected: "sha256, sha384 or sha512", Actual: "sha1",
			Cause: "the FIT was signed by an old recipe", Next: "sign with a sha256 scheme",
		})
	}
	if len(res.runs) > 0 && len(m.claimed) > 0 && !same && res.old < 0 {
		r.add(image.Finding{
			Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: span(t.prop(m.node, propNodes)),
			What:     fmt.Sprintf("hashed-nodes of %s is not the list of nodes that it covers", m.name),
			Expected: paths(inc), Actual: paths(claimed),
			Cause: "the property is not signed; a U-Boot before 2026.04 believes it and refuses this signature", Next: "sign again: firmseal writes the list that holds",
		})
	}
	return res, nil
}

func paths(m map[string]bool) string {
	var l []string
	for s := range m {
		l = append(l, clip(s))
	}
	slices.Sort(l)
	if len(l) > 12 {
		l = append(l[:12], "…")
	}
	return strings.Join(l, " ")
}

// complaint is how U-Boot refuses a configuration.
// The key that is named is r.keys[unmet], or the first required one if unmet is
// below zero.
func (r *verifier) complaint(words string, conf, unmet int) []string {
	sub := ""
	if r.dev.old {
		sub = "<NULL>"
	}
	out := []string{fmt.Sprintf("%s for '%s' hash node in '%s' config node", words, sub, r.tree.nodes[conf].name)}
	for i, a := range r.keys {
		if !a.optional && !r.dev.any && (unmet < 0 || unmet == i) {
			out = append(out, fmt.Sprintf("Failed to verify required signature '%s'", a.node()))
			break
		}
	}
	if r.dev.any {
		out = append(out, "Failed to verify 'any' of the required signature(s)")
	}
	return append(out, "Bad Data Hash", "ERROR: can't get kernel image!")
}

// decide puts the signatures of one configuration and the keys together.
func (r *verifier) decide(conf int, marks []mark, res []result) (valid, accepted bool) {
	t := r.tree
	cname := t.nodes[conf].name
	required, met, lacking := 0, 0, false
	unmet := -1
	for i, a := range r.keys {
		right := -1
		for j := range marks {
			if res[j].by[i] {
				right = j
				break
			}
		}
		if right >= 0 {
			valid = true
			m := marks[right]
			r.add(image.Finding{
				Stage: image.StageSignature, Severity: image.OK, Range: r.at(m.node),
				What:   fmt.Sprintf("%s of %s is right for the key %s", m.name, cname, a.label()),
				Device: []string{fmt.Sprintf("   Verifying Hash Integrity ... %s+ OK", m.shown())},
			})
			if a.name != "" && m.hint != a.name {
				r.add(image.Finding{
					Stage: image.StageKeyID, Severity: image.Warn, Code: problem.TrustAnchorMissing, Range: span(t.prop(m.node, propHint)),
					What:     fmt.Sprintf("%s names another key than the one that it verifies with", m.name),
					Expected: a.name, Actual: m.hint,
					Cause: "U-Boot tries each required key whatever the hint says; an optional key is found by its hint first",
					Next:  "sign with the option key_name_hint: " + a.name,
				})
			}
		}
		if a.optional {
			continue
		}
		required++
		device := false
		for j, m := range marks {
			if !res[j].runs[i] {
				continue
			}
			if r.dev.lacks(m) {
				lacking = true
				r.add(image.Finding{
					Stage: image.StageTarget, Severity: image.Fatal, Code: problem.TargetCapability, Range: span(t.prop(m.node, propAlgo)),
					What:     fmt.Sprintf("this U-Boot cannot verify %s of %s", m.name, cname),
					Expected: "RSA with PKCS #1 v1.5 padding", Actual: m.algo + map[bool]string{true: " with PSS padding"}[m.padding == paddingPSS],
					Device: append([]string{m.shown() + "-  error!"}, r.complaint("Unknown signature algorithm", conf, i)...),
					Cause:  "the build has no FIT_RSASSA_PSS or no ECDSA_VERIFY",
					Next:   "sign with an RSA key and padding pkcs-1.5, or update the bootloader first",
				})
				continue
			}
			device = true
		}
		if device {
			met++
		} else if unmet < 0 {
			unmet = i
		}
	}
	switch {
	case required == 0:
		accepted = true
	case r.dev.any:
		accepted = met > 0
	default:
		accepted = met == required
	}
	if !accepted && !lacking || !valid && required > 0 {
		r.explain(conf, marks, res, unmet, valid)
	}
	return valid, accepted
}

func (a anchor) label() string {
	if a.name != "" {
		return a.name
	}
	return a.id[:16]
}

// explain finds the one cause for which the configuration is refused.
func (r *verifier) explain(conf int, marks []mark, res []result, unmet int, valid bool) {
	t := r.tree
	cname := t.nodes[conf].name
	f := image.Finding{Stage: image.StageSignature, Severity: image.Fatal, Range: r.at(conf)}
	if len(marks) == 0 {
		f.Code, f.What = problem.SigMissing, fmt.Sprintf("the configuration %s is not signed", cname)
		f.Expected = "a signature node"
		f.Device = r.complaint("No 'signature' subnode found", conf, unmet)
		f.Cause, f.Next = "the build's output was used instead of the signed file, or the signature was removed", "sign the image: firmseal sign"
		r.add(f)
		return
	}
	if valid && unmet >= 0 {
		a := r.keys[unmet]
		for j, m := range marks {
			if !res[j].by[unmet] || a.takes(m) {
				continue
			}
			f.Stage, f.Code, f.Range = image.StageKeyID, problem.TrustAnchorMissing, r.at(m.node)
			f.What = fmt.Sprintf("the device has the key %s for another scheme than %s uses", a.label(), m.name)
			f.Expected, f.Actual = a.algo, m.algo
			f.Device = append([]string{m.shown() + "-  error!"}, r.complaint("Verification failed", conf, unmet)...)
			f.Cause, f.Next = "the algo of the key node in the control device tree must be that of the signature", "sign with the scheme of the key node, or export the trust again for this scheme"
			r.add(f)
			return
		}
		f.Stage, f.Code = image.StagePolicy, problem.SigMissing
		f.What = fmt.Sprintf("%s has no signature by %s, and the target demands one by each of its required keys", cname, a.label())
		f.Expected, f.Actual = "required-mode any, or signatures by all required keys", "required-mode all"
		f.Device = r.complaint("Verification failed", conf, unmet)
		f.Cause, f.Next = "two keys with required and no required-mode reject every image with a single signature",
			"set required-mode = \"any\" in the control device tree, or sign with all keys"
		r.add(f)
		return
	}
	// The most telling of the signatures.
	best, rank := 0, -1
	for j, m := range marks {
		s := 0
		switch {
		case res[j].old >= 0 || res[j].verity || res[j].salt:
			s = 4
		case res[j].changed >= 0:
			s = 3
		case m.unusual == "" && slices.ContainsFunc(r.keys, func(a anchor) bool { return a.name == m.hint }):
			s = 2
		case m.unusual == "":
			s = 1
		}
		if s > rank {
			best, rank = j, s
		}
	}
	m, s := marks[best], res[best]
	f.Range = r.at(m.node)
	f.Device = append([]string{m.shown() + "-  error!"}, r.complaint("Verification failed", conf, unmet)...)
	switch {
	case len(s.runs) > 0 && s.old < 0:
		return // right for the device; why it is not valid was said (weak hash, uncovered names)
	case m.unusual == "Unknown signature algorithm":
		f.Code, f.What = problem.AlgUnsupported, fmt.Sprintf("%s of %s has an algorithm that U-Boot does not know", m.name, cname)
		f.Actual = m.algo
		f.Device = append([]string{m.shown() + "-  error!"}, r.complaint(m.unusual, conf, unmet)...)
		f.Cause, f.Next = "the algo or padding property was changed or written by another tool", "sign again"
	case m.unusual == "Can't get hash value property":
		f.Code, f.What = problem.SigMissing, fmt.Sprintf("%s of %s is an empty place for a signature", m.name, cname)
		f.Device = append([]string{m.shown() + "-  error!"}, r.complaint(m.unusual, conf, unmet)...)
		f.Cause, f.Next = "the FIT was built from a source with a signature node, and never signed", "sign the image: firmseal sign"
	case m.unusual != "":
		f.Code, f.What = problem.SigEncoding, fmt.Sprintf("%s of %s cannot be read", m.name, cname)
		f.Actual = m.unusual
		f.Device = r.complaint(m.unusual, conf, unmet)
		f.Cause, f.Next = "the signature node was damaged", "sign again"
	case s.verity:
		f.Stage, f.Code = image.StageTarget, problem.TargetCapability
		f.What = fmt.Sprintf("%s is right for a U-Boot that treats dm-verity nodes the other way", m.name)
		f.Cause, f.Next = "U-Boot 2026.10 and later sign the dm-verity node, older ones do not", "sign with the dm_verity option of the target's version"
	case s.old >= 0:
		f.Stage, f.Code = image.StageCoverage, problem.SigCoverage
		f.What = fmt.Sprintf("%s is right only for the node list that the image itself carries: nodes are outside the signature", m.name)
		f.Expected, f.Actual = r.missing(conf, m), paths(setOf(m.claimed))
		f.Cause = "CVE-2026-46728: U-Boot before 2026.04 believes hashed-nodes, which is not signed; this image boots there"
		f.Next = "do not ship this image; update the bootloader to 2026.04 or a fixed package"
	case s.salt:
		f.Code = problem.SigEncoding
		f.What = fmt.Sprintf("%s has a PSS salt of another length than its hash", m.name)
		f.Expected = fmt.Sprintf("a salt of %d bytes", m.sum.Size())
		f.Device = nil
		f.Cause, f.Next = "the key's backend took its default salt; U-Boot takes any length, other verifiers do not", "sign with a salt of the hash's length"
	case s.changed >= 0:
		f.Code = problem.SigInvalid
		f.What = fmt.Sprintf("%s was made by the key %s for other content", m.name, r.keys[s.changed].label())
		f.Expected, f.Actual = hex.EncodeToString(s.signed), hex.EncodeToString(s.sum)
		f.Cause, f.Next = "the configuration, an image's properties or a hash was changed after signing, or the signature was taken from another image",
			"sign the image as it is, or restore the signed file"
	case m.family != "" && strings.HasPrefix(m.family, "rsa") && m.padding != paddingPSS, !slices.ContainsFunc(r.keys, func(a anchor) bool { return a.name == m.hint }):
		f.Stage, f.Code = image.StageKeyID, problem.TrustAnchorMissing
		f.What = fmt.Sprintf("%s of %s is not by a key that the target requires", m.name, cname)
		var have []string
		for _, a := range r.keys {
			have = append(have, a.label())
		}
		f.Expected, f.Actual = strings.Join(have, ", "), m.hint
		f.Range = span(t.prop(m.node, propHint))
		if f.Range == nil {
			f.Range = r.at(m.node)
		}
		f.Cause, f.Next = "the image was signed with another key, or the device has another control device tree",
			"compare the key ids: firmseal key list, and the control device tree's /signature"
	default:
		f.Code, f.What = problem.SigInvalid, fmt.Sprintf("%s of %s does not match", m.name, cname)
		f.Actual = hex.EncodeToString(s.sum)
		f.Cause, f.Next = "the signed bytes were changed after signing, or another key of the same name signed", "sign the image as it is, or restore the signed file"
	}
	r.add(f)
}

func setOf(l []string) map[string]bool {
	m := map[string]bool{}
	for _, s := range l {
		m[s] = true
	}
	return m
}

// missing names the nodes that should be covered and are not.
func (r *verifier) missing(conf int, m mark) string {
	used, err := r.used(conf)
	if err != nil {
		return ""
	}
	inc, _, _ := r.rebuilt(conf, used, r.dev.verity)
	for _, s := range m.claimed {
		delete(inc, s)
	}
	return "also " + paths(inc)
}
