package fit

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// VerifyOptions are the profile's options of Verify. Those not given follow
// from the profile's version; the zero profile is a current U-Boot with all
// algorithms built in.
type VerifyOptions struct {
	// Configuration that the device boots. Without it the FIT's default decides
	// whether the image is accepted, or all where there is no default; the other
	// signed configurations are checked too.
	Configuration string `json:"configuration,omitempty"`
	// RequiredMode is the control tree's required-mode: "all" (U-Boot's default)
	// or "any".
	RequiredMode string `json:"required_mode,omitempty"`
	// PSS and ECDSA: whether the build has RSASSA-PSS and ECDSA_VERIFY. Builds of
	// 2025.01 and later are taken to have them, older ones not.
	PSS   *bool `json:"pss,omitempty"`
	ECDSA *bool `json:"ecdsa,omitempty"`
	// DMVerity: the build signs dm-verity nodes (2026.10 and later).
	DMVerity *bool `json:"dm_verity,omitempty"`
	// Algos are the algo properties of the key nodes, by key name. U-Boot refuses
	// a signature whose algo is another one, even by the right RSA key. Keys that
	// are not listed are taken to have the algo of the signature.
	Algos map[string]string `json:"algos,omitempty"`
	// TrustsHashedNodes: the build lacks the fix of CVE-2026-46728 and believes
	// the image's own hashed-nodes.
	TrustsHashedNodes bool `json:"trusts_hashed_nodes,omitempty"`
	// MaxSize is FIT_SIGNATURE_MAX_SIZE; 256 MiB if not given.
	MaxSize int64 `json:"max_size,omitempty"`
}

// device is the verifier that the profile describes.
type device struct {
	VerifyOptions
	pss, ecdsa, verity, any bool
	anySalt                 bool // a named version: it takes PSS salts of any length
	old                     bool // before 2025.01: prints '<NULL>'
}

func deviceOf(p image.Profile) (device, error) {
	d := device{}
	if err := image.DecodeOptions(name, p.Options, &d.VerifyOptions); err != nil {
		return d, err
	}
	no := func(format string, a ...any) (device, error) {
		return d, problem.New(problem.ImageOptions, format, a...).WithHint("firmseal help format fit")
	}
	if p.Verifier != "" && p.Verifier != "u-boot" {
		return no("the verifier %q does not verify FIT images here; u-boot does", p.Verifier)
	}
	version := 999999
	if p.Version != "" {
		y, m, ok := strings.Cut(strings.TrimPrefix(p.Version, "v"), ".")
		year, err1 := strconv.Atoi(y)
		month, err2 := strconv.Atoi(m)
		if !ok || err1 != nil || err2 != nil || len(y) != 4 || len(m) != 2 || year < 2000 || month < 1 || month > 12 {
			return no("the U-Boot version %q is not of the form 2023.01", p.Version)
		}
		version = year*100 + month
	}
	switch d.RequiredMode {
	case "", "all":
	case "any":
		d.any = true
	default:
		return no("required_mode is \"all\" or \"any\", not %q", d.RequiredMode)
	}
	if d.MaxSize < 0 {
		return no("max_size is below zero")
	}
	if d.MaxSize == 0 {
		d.MaxSize = deviceMaxTotal
	}
	set := func(o *bool, since int) bool {
		if o != nil {
			return *o
		}
		return version >= since
	}
	d.pss, d.ecdsa, d.verity = set(d.PSS, 202501), set(d.ECDSA, 202501), set(d.DMVerity, 202610)
	d.old, d.anySalt = version < 202501, p.Version != ""
	return d, nil
}

// anchor is a trusted key, parsed.
type anchor struct {
	name     string
	id       string
	pub      crypto.PublicKey
	bits     int // of an RSA modulus
	optional bool
	algo     string // of the key node, where the profile tells it
}

// takes says whether the device tries this key for a signature at all.
func (a anchor) takes(m mark) bool {
	return a.algo == "" || a.bits == 0 || a.algo == m.algo
}

// node is what U-Boot calls the key's node.
func (a anchor) node() string { return "key-" + a.name }

// verifier is one run of Verify.
type verifier struct {
	ctx  context.Context
	src  image.Source
	dev  device
	tree *seenTree
	keys []anchor
	v    *image.Verdict

	images, configs int
	good            map[int]bool // images: all hashes right
	strong          map[int]bool // images: one of them strong
	checked         map[int]bool
}

// Verify decides as the U-Boot of the profile would. Without a required key the
// device accepts anything: that is Accepted, not Valid, and TRUST.NOT_ENFORCED.
//
// It is stricter than U-Boot where only a forger gains by leniency: nodes or
// properties that are there twice, properties behind a child node, names outside
// the signed part of the strings block are refused. The profile that names no
// version also refuses PSS salts of another length than the hash, which mkimage
// 2023.01 makes and every U-Boot takes.
func (Format) Verify(ctx context.Context, src image.Source, t image.Trust, p image.Profile) (*image.Verdict, error) {
	dev, err := deviceOf(p)
	if err != nil {
		return nil, err
	}
	r := &verifier{ctx: ctx, src: src, dev: dev, v: &image.Verdict{Format: name, Profile: p},
		good: map[int]bool{}, strong: map[int]bool{}, checked: map[int]bool{}}
	for _, k := range t.Keys {
		pub, _, err := alg.ParseSPKI(k.SPKI)
		if err != nil {
			return nil, err
		}
		a := anchor{name: k.Name, id: alg.KeyID(k.SPKI), pub: pub, optional: k.Optional, algo: dev.Algos[k.Name]}
		if x, ok := pub.(*rsa.PublicKey); ok {
			a.bits = x.N.BitLen()
		}
		r.keys = append(r.keys, a)
	}
	err = r.run(src)
	var no refusal
	if errors.As(err, &no) {
		r.v.Valid, r.v.Accepted = false, false
		r.add(no.f)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	order := []image.Stage{image.StageContainer, image.StageIntegrity, image.StageCoverage, image.StageKeyID,
		image.StageSignature, image.StageCertificate, image.StagePolicy, image.StageTarget}
	slices.SortStableFunc(r.v.Findings, func(a, b image.Finding) int {
		return cmp.Compare(slices.Index(order, a.Stage), slices.Index(order, b.Stage))
	})
	return r.v, nil
}

// maxFindings bounds the verdict; what was left out is counted in its last line.
const maxFindings = 500

func (r *verifier) add(f image.Finding) {
	if f.Range != nil { // what is cut off is no range of the file
		size := r.src.Size()
		off := min(max(f.Range.Off, 0), size)
		f.Range = &image.Range{Off: off, Len: min(max(f.Range.Len, 0), size-off)}
	}
	if len(r.v.Findings) < maxFindings || f.Severity == image.Fatal && len(r.v.Findings) < 2*maxFindings {
		r.v.Findings = append(r.v.Findings, f)
	}
}

func (r *verifier) at(node int) *image.Range {
	n := r.tree.nodes[node]
	return &image.Range{Off: n.off, Len: n.end - n.off}
}

func span(k *seenToken) *image.Range {
	if k == nil {
		return nil
	}
	return &image.Range{Off: k.off, Len: k.end - k.off}
}

func (r *verifier) run(src image.Source) error {
	t, err := look(r.ctx, src)
	if err != nil {
		return err
	}
	r.tree = t
	if err := r.container(); err != nil {
		return err
	}
	chosen, others, err := r.choose()
	if err != nil {
		return err
	}
	valid, accepted := true, true
	for _, c := range chosen {
		ok, runs, err := r.configuration(c)
		if err != nil {
			return err
		}
		valid, accepted = valid && ok, accepted && runs
	}
	for _, c := range others {
		// A configuration that the device would not take by itself, but can be
		// told to: a signature that it carries must be right.
		ok, _, err := r.configuration(c)
		if err != nil {
			return err
		}
		valid = valid && ok
	}
	if err := r.leftover(); err != nil {
		return err
	}
	r.v.Valid, r.v.Accepted = valid, accepted
	if !r.requires() {
		r.v.Valid = false
		r.add(image.Finding{
			Stage: image.StagePolicy, Severity: image.Fatal, Code: problem.TrustNotEnforced,
			What:     "the target requires no signature: it runs unsigned images too",
			Expected: "a key node with required = \"conf\"", Actual: fmt.Sprintf("%d keys, none required", len(r.keys)),
			Device: []string{"   Verifying Hash Integrity ... OK"},
			Cause:  "the key node in the control device tree has no required property; mkimage before 2025.01 leaves it out for ECDSA keys",
			Next:   "put the key into the control device tree with firmseal trust export",
		})
	}
	return nil
}

// requires says whether any key is required.
func (r *verifier) requires() bool {
	return slices.ContainsFunc(r.keys, func(a anchor) bool { return !a.optional })
}

// container checks what U-Boot's fit_check_format does.
func (r *verifier) container() error {
	t := r.tree
	if _, ok, err := t.text(0, propDesc); err != nil {
		return err
	} else if !ok {
		return broken(problem.ImageMalformed, t.nodes[0].off, 4, "the root node has no description")
	}
	if _, ok, err := t.number(0, propStamp); err != nil {
		return err
	} else if !ok {
		r.add(image.Finding{
			Stage: image.StageContainer, Severity: image.Warn, Code: problem.ImageMalformed,
			What: "the root node has no timestamp; a U-Boot built with TIMESTAMP refuses the FIT", Range: r.at(0),
			Device: []string{"Bad FIT kernel image format!"}, Next: "build the FIT with mkimage, which sets it",
		})
	}
	r.images, r.configs = t.child(0, imagesNode), t.child(0, configurationsNode)
	if r.images < 0 {
		return broken(problem.ImageMalformed, t.nodes[0].off, 4, "there is no /images")
	}
	for _, n := range t.nodes {
		if strings.Contains(n.name, "@") {
			f := broken(problem.ImageMalformed, n.off, n.end-n.off, "the node %s has a unit address", n.path)
			f.f.Device = []string{"Signature checking prevents use of unit addresses (@) in nodes", "Bad FIT kernel image format!"}
			f.f.Cause = "libfdt takes name and name@x for the same node, which lets a forger add a second one"
			f.f.Next = "name the nodes kernel-1, hash-1 instead of kernel@1, hash@1"
			return f
		}
		if len(n.path) >= deviceMaxPath-1 {
			f := broken(problem.ImageMalformed, n.off, n.end-n.off, "the path of a node has %d bytes", len(n.path))
			f.f.Device = []string{"Failed to hash configuration"}
			f.f.Cause, f.f.Next = "U-Boot walks paths of less than 200 bytes", "use shorter node names"
			return f
		}
	}
	if t.total > r.dev.MaxSize {
		f := broken(problem.TargetCapability, 4, 4, "the device tree is larger than this U-Boot verifies")
		f.f.Stage = image.StageTarget
		f.f.Expected, f.f.Actual = fmt.Sprintf("at most %d bytes", r.dev.MaxSize), fmt.Sprintf("%d bytes", t.total)
		f.f.Device = []string{"Total size too large"}
		f.f.Cause, f.f.Next = "embedded images count into FIT_SIGNATURE_MAX_SIZE", "build the FIT with external data: mkimage -E"
		return f
	}
	return nil
}

// choose gives the configurations that decide, and the other ones that carry a
// signature.
func (r *verifier) choose() (chosen, others []int, err error) {
	t := r.tree
	none := func(what string) error {
		off := t.nodes[0].off
		f := broken(problem.ImageMalformed, off, 4, "%s", what)
		f.f.Device = []string{"Could not find configuration node", "ERROR: can't get kernel image!"}
		f.f.Cause, f.f.Next = "the FIT was built without it, or the name is wrong", "firmseal inspect shows the configurations"
		return f
	}
	if r.configs < 0 || len(t.nodes[r.configs].children) == 0 {
		return nil, nil, none("the FIT has no configuration, so nothing that a signature could be required for")
	}
	all := t.nodes[r.configs].children
	if len(all) > maxConfigs {
		return nil, nil, broken(problem.ImageMalformed, t.nodes[r.configs].off, 4, "the FIT has more than %d configurations", maxConfigs)
	}
	want := r.dev.Configuration
	if want == "" {
		if want, _, err = t.text(r.configs, propDefault); err != nil {
			return nil, nil, err
		}
	}
	if want == "" {
		return all, nil, nil
	}
	c := t.child(r.configs, want)
	if c < 0 {
		return nil, nil, none(fmt.Sprintf("the FIT has no configuration %q", clip(want)))
	}
	if r.dev.Configuration != "" {
		return []int{c}, nil, nil
	}
	for _, x := range all {
		if x == c {
			continue
		}
		signed := false
		for _, s := range r.signaturesOf(x) {
			k := t.prop(s, propValue)
			signed = signed || k != nil && k.len > 0
		}
		if signed {
			others = append(others, x)
			continue
		}
		r.add(image.Finding{
			Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: r.at(x),
			What:  fmt.Sprintf("the configuration %s is not signed", t.nodes[x].name),
			Cause: "only some configurations were signed", Next: "sign all configurations, or leave this one out of the FIT",
		})
	}
	return []int{c}, others, nil
}

func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.Trim(strconv.QuoteToASCII(s), `"`)
}

func (r *verifier) signaturesOf(conf int) []int {
	var out []int
	for _, c := range r.tree.nodes[conf].children {
		if strings.HasPrefix(r.tree.nodes[c].name, signatureNode) {
			out = append(out, c)
		}
	}
	return out
}

// used gives the images that a configuration refers to. U-Boot takes every
// property for a reference but a few; so do we.
func (r *verifier) used(conf int) ([]int, error) {
	t := r.tree
	var out []int
	for _, i := range t.nodes[conf].props {
		k := t.tokens[i]
		if k.name == propDesc || k.name == propCompat || k.name == propDefault || k.name == propLoadOnly {
			continue
		}
		list, err := t.texts(conf, k.name)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			if im := t.child(r.images, s); im >= 0 {
				out = append(out, im)
			} else if k.name == "kernel" || k.name == "fdt" || k.name == "ramdisk" || k.name == "firmware" || k.name == "loadables" {
				f := broken(problem.ImageMalformed, k.off, k.end-k.off, "the configuration %s names the image %q, which is not there", t.nodes[conf].name, clip(s))
				f.f.Device = []string{"Could not find subimage node", "ERROR: can't get kernel image!"}
				f.f.Cause, f.f.Next = "the configuration and the images were not built together", "build the FIT again"
				return nil, f
			}
		}
	}
	return out, nil
}

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

// strength of U-Boot's image hashes.
func imageSum(algo string) (h hash.Hash, strong bool) {
	switch algo {
	case "sha256":
		return sha256.New(), true
	case "sha384":
		return sha512.New384(), true
	case "sha512":
		return sha512.New(), true
	case "sha1":
		return sha1.New(), false
	case "md5":
		return md5.New(), false
	case "crc32":
		return crc32.NewIEEE(), false
	}
	return nil, false
}

// image checks an image's data against all its hash nodes, once.
func (r *verifier) image(im int) error {
	if r.checked[im] {
		return nil
	}
	r.checked[im] = true
	t := r.tree
	iname := t.nodes[im].name
	where, err := r.data(im)
	if err != nil {
		return err
	}
	if where == nil {
		return nil // said by data; not good
	}
	type check struct {
		node int
		h    hash.Hash
		want []byte
	}
	var checks []check
	sinks := []io.Writer{io.Discard}
	good, strong, skipped := true, false, false
	for _, c := range t.nodes[im].children {
		cname := t.nodes[c].name
		if !strings.HasPrefix(cname, hashNode) {
			if cname != cipherNode && (cname != verityNode || !r.dev.verity) {
				what := "nothing in it is covered by the configuration's signature"
				if strings.HasPrefix(cname, signatureNode) {
					what = "a signature of a single image allows images to be mixed; only configuration signatures are required here"
				}
				r.add(image.Finding{
					Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: r.at(c),
					What: fmt.Sprintf("%s: %s", t.nodes[c].path, what), Cause: "U-Boot hashes only the tags of such nodes", Next: "leave the node out",
				})
			}
			continue
		}
		bad := func(words, cause string) {
			good = false
			r.add(image.Finding{
				Stage: image.StageIntegrity, Severity: image.Fatal, Code: problem.ImageMalformed, Range: r.at(c),
				What: fmt.Sprintf("%s of the image %s cannot be checked", cname, iname), Actual: words,
				Device: []string{fmt.Sprintf("%s for '%s' hash node in '%s' image node", words, cname, iname), "Bad Data Hash", "ERROR: can't get kernel image!"},
				Cause:  cause, Next: "build the FIT again with sha256",
			})
		}
		if k := t.prop(c, propIgnore); k != nil {
			skipped = true
			r.add(image.Finding{
				Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: span(k),
				What: fmt.Sprintf("U-Boot does not check %s of the image %s", cname, iname), Device: []string{"-skipped"},
				Cause: "the hash node is marked " + propIgnore, Next: "remove the property from the source",
			})
			continue
		}
		algo, ok, err := t.text(c, propAlgo)
		if err != nil {
			return err
		}
		want, err := t.value(c, propValue)
		if err != nil {
			return err
		}
		h, s := imageSum(algo)
		switch {
		case !ok:
			bad("Can't get hash algo property", "the hash node has no algo")
		case h == nil:
			bad("Unsupported hash algorithm", "the hash algorithm "+clip(algo)+" is unknown")
		case len(want) == 0:
			bad("Can't get hash value property", "the hash node has no value")
		case len(want) != h.Size():
			bad("Bad hash value len", fmt.Sprintf("the value has %d bytes, %s has %d", len(want), algo, h.Size()))
		default:
			strong = strong || s
			checks, sinks = append(checks, check{c, h, want}), append(sinks, h)
		}
	}
	if err := t.pour(r.ctx, io.MultiWriter(sinks...), []image.Range{*where}); err != nil {
		return err
	}
	for _, c := range checks {
		if sum := c.h.Sum(nil); !slices.Equal(sum, c.want) {
			good = false
			cname := t.nodes[c.node].name
			r.add(image.Finding{
				Stage: image.StageIntegrity, Severity: image.Fatal, Code: problem.SigInvalid, Range: where,
				What:     fmt.Sprintf("the data of the image %s are not those that %s says", iname, cname),
				Expected: hex.EncodeToString(c.want), Actual: hex.EncodeToString(sum),
				Device: []string{
					" error!", fmt.Sprintf("Bad hash value for '%s' hash node in '%s' image node", cname, iname),
					"Bad Data Hash", "ERROR: can't get kernel image!",
				},
				Cause: "the image's bytes were changed after the FIT was built; the configuration's signature alone does not show it",
				Next:  "restore the signed file, or build and sign again",
			})
		}
	}
	if !strong && good {
		what := fmt.Sprintf("the image %s has no hash that a signature can stand on", iname)
		code := problem.AlgWeak
		if len(checks) == 0 {
			code = problem.SigCoverage
		}
		cause := "only sha1, md5 or crc32, for which other data with the same value can be made"
		if skipped {
			cause = "the hash that would count is marked " + propIgnore
		}
		r.add(image.Finding{
			Stage: image.StageCoverage, Severity: image.Fatal, Code: code, Range: r.at(im), What: what,
			Expected: "a hash node of sha256, sha384 or sha512", Cause: cause,
			Next: "build the FIT with hash-1 { algo = \"sha256\"; }, or sign with hashes: fill",
		})
	}
	r.good[im], r.strong[im] = good, strong
	return nil
}

// data finds an image's bytes; nil after a finding when there are none.
func (r *verifier) data(im int) (*image.Range, error) {
	t := r.tree
	iname := t.nodes[im].name
	fail := func(code problem.Code, format string, a ...any) (*image.Range, error) {
		r.add(image.Finding{
			Stage: image.StageIntegrity, Severity: image.Fatal, Code: code, Range: r.at(im),
			What:   fmt.Sprintf("the data of the image %s: ", iname) + fmt.Sprintf(format, a...),
			Device: []string{"Can't get image data/size!", "Bad Data Hash", "ERROR: can't get kernel image!"},
			Cause:  "the file was cut off, or its lengths were changed", Next: "restore the file, or build the FIT again",
		})
		return nil, nil
	}
	k, o, p := t.prop(im, propData), t.prop(im, propOffset), t.prop(im, propPosition)
	n := 0
	for _, x := range []*seenToken{k, o, p} {
		if x != nil {
			n++
		}
	}
	if n != 1 {
		return fail(problem.ImageMalformed, "%d of data, data-offset and data-position, where one is right", n)
	}
	if k != nil {
		return &image.Range{Off: k.val, Len: k.len}, nil
	}
	size, ok, err := t.number(im, propSize)
	if err != nil {
		return nil, err
	}
	if !ok {
		return fail(problem.ImageMalformed, "no data-size")
	}
	prop, base := propPosition, int64(0)
	if o != nil {
		prop, base = propOffset, (t.total+3)&^3
	}
	at, ok, err := t.number(im, prop)
	if err != nil {
		return nil, err
	}
	if !ok {
		return fail(problem.ImageMalformed, "%s is not a number", prop)
	}
	at += base
	if at < t.total {
		return fail(problem.ImageMalformed, "they begin at byte %d, inside the device tree", at)
	}
	if at+size > t.src.Size() {
		return fail(problem.ImageTruncated, "they end at byte %d, the file at %d", at+size, t.src.Size())
	}
	return &image.Range{Off: at, Len: size}, nil
}

// leftover looks for bytes that no signature covers.
func (r *verifier) leftover() error {
	t := r.tree
	for _, c := range t.nodes[r.images].children {
		if !r.checked[c] {
			r.add(image.Finding{
				Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: r.at(c),
				What: fmt.Sprintf("the image %s is in no configuration that was checked", t.nodes[c].name), Cause: "U-Boot can be told to boot an image by its name, without a configuration", Next: "leave unused images out",
			})
		}
	}
	for _, c := range t.nodes[0].children {
		if c != r.images && c != r.configs {
			r.add(image.Finding{
				Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: r.at(c),
				What: fmt.Sprintf("the node %s is outside every signature", t.nodes[c].path), Cause: "U-Boot ignores it", Next: "leave it out",
			})
		}
	}
	used := []image.Range{{Off: 0, Len: 40}, {Off: t.rsvOff, Len: t.rsvEnd - t.rsvOff},
		{Off: t.structOff, Len: t.structEnd - t.structOff}, {Off: t.stringsOff, Len: t.strLen}}
	for _, c := range t.nodes[r.images].children {
		size, _, err := t.number(c, propSize)
		if err != nil {
			return err
		}
		at, ok, err := t.number(c, propPosition)
		if err != nil {
			return err
		}
		if t.prop(c, propOffset) != nil {
			if at, ok, err = t.number(c, propOffset); err != nil {
				return err
			}
			at += (t.total + 3) &^ 3
		}
		if ok {
			used = append(used, image.Range{Off: at, Len: size})
		}
	}
	slices.SortFunc(used, func(a, b image.Range) int { return cmp.Compare(a.Off, b.Off) })
	size, at := t.src.Size(), int64(0)
	for _, u := range append(used, image.Range{Off: size}) {
		if u.Off > at {
			if err := r.gap(at, min(u.Off, size), u.Off >= size); err != nil {
				return err
			}
		}
		at = max(at, u.Off+u.Len)
	}
	return nil
}

// gap warns of bytes that belong to nothing: always behind the last thing of
// the file, between two things only if they are not zeros.
func (r *verifier) gap(from, to int64, last bool) error {
	what := "%d bytes at the end of the file belong to no image"
	if !last || from < r.tree.total {
		var z nonzero
		if err := r.tree.pour(r.ctx, &z, []image.Range{{Off: from, Len: to - from}}); err != nil {
			return err
		}
		if !z {
			return nil
		}
		what = "%d bytes between the parts of the file are not zeros, and belong to none"
	}
	r.add(image.Finding{
		Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, Range: &image.Range{Off: from, Len: to - from},
		What: fmt.Sprintf(what, to-from), Cause: "padding, or something that was hidden or appended", Next: "build the FIT again, without it",
	})
	return nil
}

// nonzero notes whether any byte but zero was written to it.
type nonzero bool

func (z *nonzero) Write(b []byte) (int, error) {
	*z = *z || nonzero(slices.ContainsFunc(b, func(x byte) bool { return x != 0 }))
	return len(b), nil
}
