package fit

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/problem"
)

// PlanOptions are the options of Plan, as JSON in the profile.
type PlanOptions struct {
	// Configurations to sign; empty means all.
	Configurations []string `json:"configurations,omitempty"`
	// KeyNameHint replaces the key's name as key-name-hint; for one key only.
	KeyNameHint string `json:"key_name_hint,omitempty"`
	// Padding of an RSA key whose scheme is not given: "pkcs-1.5" (default) or "pss".
	Padding string `json:"padding,omitempty"`
	// Hashes says what happens to the images' hash nodes: "fill" (default) adds a
	// node to an image that has no strong one and refuses a wrong value, "keep"
	// refuses both, "recompute" also corrects wrong values.
	Hashes string `json:"hashes,omitempty"`
	// Hash of added nodes: "sha256" (default), "sha384" or "sha512".
	Hash string `json:"hash,omitempty"`
	// Replace removes existing signatures of the configurations.
	Replace bool `json:"replace,omitempty"`
	// Append fills a prepared signature node (one without a value) beside
	// signatures that stay valid.
	Append bool `json:"append,omitempty"`
	// Timestamp of the signature, seconds since 1970; none if not given, so that
	// the output depends on the input only.
	Timestamp *uint32 `json:"timestamp,omitempty"`
	// DMVerity says whether the target's U-Boot signs dm-verity nodes (2026.10
	// and later do). It must be given when a configuration has such an image,
	// because the two do not verify each other's signatures.
	DMVerity *bool `json:"dm_verity,omitempty"`
}

// signer is one key that will sign.
type signer struct {
	pub     image.PublicMaterial
	spec    alg.Spec
	hint    string
	algo    string // as U-Boot names the scheme
	padding string // "" for the default
	size    int    // of the value property
}

// target is one signature to make.
type target struct {
	slot string
	conf *fdt.Node
	node *fdt.Node // the signature node; its value is filled by Embed
	by   signer
}

// plan is what Plan decided; a pure function of source, options and keys.
type plan struct {
	src      image.Source
	tree     *fdt.Tree
	targets  []target
	requests []image.SignRequest
	align    int64 // of the structure's end
	total    int64 // smallest totalsize
	external bool  // something follows the structure
	position bool  // it must not move
	oldTail  int64 // where it begins in the source, if it may move
}

func makePlan(ctx context.Context, src image.Source, o PlanOptions, pub []image.PublicMaterial) (*plan, error) {
	by, err := signers(o, pub)
	if err != nil {
		return nil, err
	}
	p := &plan{src: src}
	if p.tree, err = fdt.Read(src, src.Size()); err != nil {
		return nil, err
	}
	imgs, confs, err := outline(p.tree)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(confs, o.Configurations)
	if err != nil {
		return nil, err
	}
	if err := p.tail(imgs); err != nil {
		return nil, err
	}
	images, err := p.referenced(chosen, imgs, o)
	if err != nil {
		return nil, err
	}
	sums := map[*fdt.Node]string{}
	for _, im := range images {
		if sums[im], err = p.hashes(ctx, im, o); err != nil {
			return nil, err
		}
	}
	for _, c := range chosen {
		if err := p.place(c, imgs, by, o); err != nil {
			return nil, err
		}
	}
	return p, p.hash(ctx, imgs, sums, o)
}

// signers resolves the keys to U-Boot's schemes.
func signers(o PlanOptions, pub []image.PublicMaterial) ([]signer, error) {
	switch {
	case len(pub) == 0:
		return nil, badOption("no key to sign with was named")
	case len(pub) > maxSignaturesPer:
		return nil, badOption("%d keys are more than the %d that one configuration may have", len(pub), maxSignaturesPer)
	case o.Padding != "" && o.Padding != paddingPKCS && o.Padding != paddingPSS:
		return nil, badOption("the padding %q is unknown", o.Padding).Seen("paddings: %s, %s", paddingPKCS, paddingPSS)
	case !slices.Contains([]string{"", "fill", "keep", "recompute"}, o.Hashes):
		return nil, badOption("hashes: %q is unknown", o.Hashes).Seen("values: fill, keep, recompute")
	case !slices.Contains([]string{"", "sha256", "sha384", "sha512"}, o.Hash):
		return nil, badOption("hash: %q is unknown or too weak", o.Hash).Seen("values: sha256, sha384, sha512")
	case o.Replace && o.Append:
		return nil, badOption("replace and append exclude each other")
	case o.KeyNameHint != "" && len(pub) > 1:
		return nil, badOption("key_name_hint fits one key only, and %d sign", len(pub))
	}
	var out []signer
	for _, m := range pub {
		hint := m.Name
		if o.KeyNameHint != "" {
			hint = o.KeyNameHint
		}
		if err := checkHint(hint); err != nil {
			return nil, err
		}
		s, err := resolve(m, o.Padding)
		if err != nil {
			return nil, err
		}
		s.hint = hint
		for _, x := range out {
			if x.hint == hint {
				return nil, badOption("two keys have the same key-name-hint %q", hint)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// checkHint refuses what cannot be part of the node name key-HINT.
func checkHint(h string) error {
	bad := strings.IndexFunc(h, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune(".,_+-", r))
	})
	if h == "" || len(h) > 64 || bad >= 0 {
		return badOption("%q cannot be a key-name-hint", h).Seen("1 to 64 letters, digits and . , _ + -; it becomes a node name of the device")
	}
	return nil
}

// resolve finds U-Boot's name for the scheme.
func resolve(m image.PublicMaterial, padding string) (signer, error) {
	_, kt, err := alg.ParseSPKI(m.SPKI)
	if err != nil {
		return signer{}, err
	}
	id := m.Alg
	if id == "" {
		for _, x := range alg.For(kt) {
			if s, err := alg.Lookup(x); err == nil && s.PSS == (padding == paddingPSS) {
				id = x
				break
			}
		}
	}
	if kt == alg.Ed25519 || id == "" {
		return signer{}, problem.New(problem.AlgUnsupported, "U-Boot cannot verify %s with %s padding in a FIT", kt, orDefault(padding)).
			Seen("it knows RSA of 2048, 3072 and 4096 bits with PKCS #1 v1.5 or PSS, and ECDSA on P-256 and P-384").
			WithHint("use a key of type rsa2048, rsa3072, rsa4096, p256 or p384")
	}
	spec, err := alg.Lookup(id)
	if err != nil {
		return signer{}, err
	}
	if spec.Key != kt {
		return signer{}, problem.New(problem.AlgUnsupported, "the %s key %q cannot sign with %s", kt, m.Name, id)
	}
	if padding != "" && spec.PSS != (padding == paddingPSS) {
		return signer{}, badOption("the padding %q contradicts the scheme %s", padding, id)
	}
	s := signer{pub: m, spec: spec}
	h := map[int]string{32: "sha256", 48: "sha384", 64: "sha512"}[spec.Hash.Size()]
	switch kt {
	case alg.P256:
		s.algo, s.size = h+",ecdsa256", 64
	case alg.P384:
		s.algo, s.size = h+",ecdsa384", 96
	case alg.RSA2048, alg.RSA3072, alg.RSA4096:
		n := map[alg.KeyType]int{alg.RSA2048: 2048, alg.RSA3072: 3072, alg.RSA4096: 4096}[kt]
		s.algo, s.size = h+",rsa"+strconv.Itoa(n), n/8
		if spec.PSS {
			s.padding = paddingPSS
		}
	}
	return s, nil
}

func orDefault(padding string) string {
	if padding == "" {
		return "default"
	}
	return padding
}

// outline finds the two parent nodes and refuses what U-Boot would refuse
// whatever the signature says.
func outline(t *fdt.Tree) (imgs, confs *fdt.Node, err error) {
	if _, ok := t.Root.Strs(propDesc); !ok {
		return nil, nil, malformed("the FIT has no description in its root node").
			Seen("U-Boot demands one").WithHint("add description = \"…\"; to the source")
	}
	imgs, confs = t.Root.Child(imagesNode), t.Root.Child(configurationsNode)
	if imgs == nil || len(imgs.Nodes) == 0 {
		return nil, nil, malformed("the FIT has no images").Seen("no node below /images")
	}
	if confs == nil || len(confs.Nodes) == 0 {
		return nil, nil, malformed("the FIT has no configurations").
			Seen("only configurations can be signed; signatures of single images allow mix and match").
			WithHint("add a node below /configurations that names the images")
	}
	if len(confs.Nodes) > maxConfigs {
		return nil, nil, malformed("the FIT has more than %d configurations", maxConfigs).Seen("%d", len(confs.Nodes))
	}
	if d, _ := confs.Strs(propDefault); len(d) > 0 && d[0] != "" && confs.Child(d[0]) == nil {
		return nil, nil, malformed("the FIT's default configuration %q is not there", printable(d[0])).
			Seen("configurations: %s", childNames(confs)).WithHint("correct default in the source")
	}
	var walk func(n *fdt.Node, path string) error
	walk = func(n *fdt.Node, path string) error {
		for _, c := range n.Nodes {
			if strings.Contains(c.Name, "@") {
				return malformed("the node %s/%s has a unit address", path, c.Name).
					Seen("U-Boot: Signature checking prevents use of unit addresses (@) in nodes").
					WithHint("write %s instead of %s in the source", strings.ReplaceAll(c.Name, "@", "-"), c.Name)
			}
			if max(len(path), 1)+2+len(c.Name) >= deviceMaxPath {
				return malformed("the path of node %.60q is too long for U-Boot", c.Name).Seen("it has %d bytes for any path", deviceMaxPath)
			}
			if err := walk(c, path+"/"+c.Name); err != nil {
				return err
			}
		}
		return nil
	}
	return imgs, confs, walk(t.Root, "")
}

func choose(confs *fdt.Node, names []string) ([]*fdt.Node, error) {
	if len(names) == 0 {
		return confs.Nodes, nil
	}
	var out []*fdt.Node
	for _, n := range names {
		c := confs.Child(n)
		if c == nil {
			return nil, badOption("the FIT has no configuration %q", n).Seen("configurations: %s", childNames(confs))
		}
		if slices.Contains(out, c) {
			return nil, badOption("the configuration %q is named twice", n)
		}
		out = append(out, c)
	}
	return out, nil
}

func childNames(n *fdt.Node) string {
	var out []string
	for _, c := range n.Nodes {
		if len(out) == 16 {
			out = append(out, "…")
			break
		}
		out = append(out, c.Name)
	}
	return strings.Join(out, ", ")
}

// imageRefs gives the properties of a configuration that refer to images, and
// the images, in order. A property that is not one of the few known others is
// a reference as far as its strings name images: so a new kind of image is
// covered without a change here.
func imageRefs(conf, imgs *fdt.Node) (props []string, images []*fdt.Node) {
	for _, p := range conf.Props {
		switch p.Name {
		case propDesc, propCompat, propDefault, propLoadOnly:
			continue
		}
		list, _ := conf.Strs(p.Name)
		named := false
		for _, s := range list {
			if im := imgs.Child(s); im != nil {
				images = append(images, im)
				named = true
			}
		}
		if named {
			props = append(props, p.Name)
		}
	}
	return props, images
}

// referenced gives each image that one of the configurations uses, once.
func (p *plan) referenced(chosen []*fdt.Node, imgs *fdt.Node, o PlanOptions) ([]*fdt.Node, error) {
	var out []*fdt.Node
	for _, c := range chosen {
		_, list := imageRefs(c, imgs)
		if len(list) == 0 {
			return nil, malformed("the configuration %s refers to no image", c.Name).
				Seen("U-Boot: No images in config '%s'", c.Name)
		}
		for _, k := range []string{"kernel", "fdt", "ramdisk", "firmware", "loadables", "fpga", "script", "standalone"} {
			refs, _ := c.Strs(k)
			for _, r := range refs {
				if imgs.Child(r) == nil {
					return nil, malformed("the configuration %s names an image that is not there", c.Name).Seen("%s = %q", k, r)
				}
			}
		}
		for _, im := range list {
			if !slices.Contains(out, im) {
				out = append(out, im)
			}
			if im.Child(verityNode) != nil && o.DMVerity == nil {
				return nil, badOption("the image %s has a dm-verity node, and U-Boot versions differ in whether it is signed", im.Name).
					Seen("2026.10 and later sign it").WithHint("set dm_verity to true or false, as the target's U-Boot does it")
			}
		}
	}
	return out, nil
}

// extent says where an image's data are in the source.
func (p *plan) extent(im *fdt.Node) (off, n int64, err error) {
	return extent(p.tree, im, p.src.Size())
}

func extent(t *fdt.Tree, im *fdt.Node, size int64) (off, n int64, err error) {
	data, ext, pos := im.Prop(propData), im.Prop(propOffset), im.Prop(propPosition)
	have := 0
	for _, x := range []*fdt.Prop{data, ext, pos} {
		if x != nil {
			have++
		}
	}
	if have != 1 {
		return 0, 0, malformed("the image %s has not exactly one of data, data-offset and data-position", im.Name).Seen("it has %d", have)
	}
	if data != nil {
		return data.Off, data.Len(), nil
	}
	length, ok := im.U32(propSize)
	if !ok {
		return 0, 0, malformed("the external image %s has no data-size", im.Name)
	}
	what, base := propPosition, int64(0)
	if ext != nil {
		what, base = propOffset, align(t.Total, 4)
	}
	v, ok := im.U32(what)
	if !ok {
		return 0, 0, malformed("%s of the image %s is not one number", what, im.Name)
	}
	off, n = base+int64(v), int64(length)
	if off < t.Total {
		return 0, 0, malformed("the data of the image %s begin inside the device tree", im.Name).Seen("at byte %d of %d", off, t.Total)
	}
	if off+n > size {
		return 0, 0, problem.New(problem.ImageTruncated, "the data of the image %s are cut off", im.Name).
			Seen("they end at byte %d, the file at %d", off+n, size)
	}
	return off, n, nil
}

func align(v, a int64) int64 { return (v + a - 1) / a * a }

// tail decides what follows the structure in the output. Data that are named
// by an offset from the structure's end move with it, keeping the alignment
// that they have; data named by a position must not move.
func (p *plan) tail(imgs *fdt.Node) error {
	size, old := p.src.Size(), align(p.tree.Total, 4)
	p.align, p.oldTail, p.external = 8, old, size > old
	first := int64(-1)
	offsets := false
	for _, im := range imgs.Nodes {
		if im.Prop(propPosition) == nil && im.Prop(propOffset) == nil {
			continue
		}
		off, _, err := p.extent(im)
		if err != nil {
			return err
		}
		if im.Prop(propOffset) != nil {
			offsets = true
		} else if first < 0 || off < first {
			first = off
		}
	}
	if p.external {
		p.align = int64(1) << min(max(bits.TrailingZeros64(uint64(old)), 3), 12)
	}
	if first >= 0 {
		p.position = true
		p.align, p.total = 4, p.tree.Total
		p.oldTail = first // how far the structure may grow
		if offsets {
			p.oldTail = p.tree.Total // not at all: the others would move
		}
	}
	return nil
}

// newHash gives the hash of U-Boot's name, or nil. Strong ones are those that
// may stand for an image under a signature.
func newHash(algo string) (h hash.Hash, strong bool) {
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

// hashes checks an image's hash nodes against its data, and adds or corrects
// them as the options say. It returns the SHA-256 of the data for the reviewer.
func (p *plan) hashes(ctx context.Context, im *fdt.Node, o PlanOptions) (string, error) {
	off, n, err := p.extent(im)
	if err != nil {
		return "", err
	}
	type check struct {
		node *fdt.Node
		h    hash.Hash
	}
	var checks []check
	seen := sha256.New()
	sinks := []io.Writer{seen}
	strong := false
	for _, c := range im.Nodes {
		if !strings.HasPrefix(c.Name, hashNode) {
			continue
		}
		if c.Prop(propIgnore) != nil {
			return "", problem.New(problem.SigCoverage, "%s of the image %s is marked %s", c.Name, im.Name, propIgnore).
				Seen("U-Boot would not check it").WithHint("remove the property from the source")
		}
		algo, _ := c.Str(propAlgo)
		h, good := newHash(algo)
		if h == nil {
			return "", malformed("%s of the image %s has the algorithm %q", c.Name, im.Name, algo).
				Seen("U-Boot: Unsupported hash algorithm")
		}
		strong = strong || good
		checks, sinks = append(checks, check{c, h}), append(sinks, h)
	}
	var added *fdt.Node
	if !strong {
		if o.Hashes == "keep" {
			return "", problem.New(problem.SigCoverage, "the image %s has no hash node that a signature can stand on", im.Name).
				Seen("a configuration signature covers data through a hash node of sha256, sha384 or sha512 only").
				WithHint("sign with hashes: fill")
		}
		algo := o.Hash
		if algo == "" {
			algo = "sha256"
		}
		h, _ := newHash(algo)
		added = im.Add(freeName(im, hashNode))
		added.SetString(propAlgo, algo)
		checks, sinks = append(checks, check{added, h}), append(sinks, h)
	}
	if err := stream(ctx, io.MultiWriter(sinks...), p.src, off, n); err != nil {
		return "", err
	}
	for _, c := range checks {
		sum := c.h.Sum(nil)
		have := c.node.Prop(propValue)
		if have != nil {
			if v, held := have.Held(); held && string(v) == string(sum) {
				continue
			}
		}
		if c.node != added && have != nil && have.Len() > 0 && o.Hashes != "recompute" {
			return "", problem.New(problem.SigInvalid, "%s of the image %s does not match its data", c.node.Name, im.Name).
				Seen("the data were changed after the FIT was built").
				WithHint("build the FIT again, or sign with hashes: recompute")
		}
		if c.node != added && have == nil && o.Hashes == "keep" {
			return "", problem.New(problem.SigCoverage, "%s of the image %s has no value", c.node.Name, im.Name).
				WithHint("sign with hashes: fill")
		}
		c.node.Set(propValue, sum)
	}
	return fmt.Sprintf("%x", seen.Sum(nil)), nil
}

// freeName gives PREFIX-1, PREFIX-2, … that no child has.
func freeName(n *fdt.Node, prefix string) string {
	for i := 1; ; i++ {
		if s := prefix + "-" + strconv.Itoa(i); n.Child(s) == nil {
			return s
		}
	}
}

// stream copies a range of the source and stops when ctx ends.
func stream(ctx context.Context, w io.Writer, src io.ReaderAt, off, n int64) error {
	buf := make([]byte, 256<<10)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(n, int64(len(buf)))]
		if m, err := src.ReadAt(b, off); m < len(b) {
			return fmt.Errorf("reading %d bytes at %d of the FIT: %w", len(b), off, err)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// place puts the signature nodes of one configuration into the tree, complete
// but for the hashed lists and the value.
func (p *plan) place(c, imgs *fdt.Node, by []signer, o PlanOptions) error {
	var signed, prepared []*fdt.Node
	for _, n := range c.Nodes {
		if !strings.HasPrefix(n.Name, signatureNode) {
			continue
		}
		if v := n.Prop(propValue); v != nil && v.Len() > 0 {
			signed = append(signed, n)
		} else {
			prepared = append(prepared, n)
		}
	}
	switch {
	case len(signed) > 0 && o.Append:
		if len(prepared) != len(by) {
			return problem.New(problem.ImageNoRoom, "the configuration %s has no prepared place for another signature", c.Name).
				Seen("%d signature nodes without a value, %d keys; a new node would break the signatures that are there, which cover the names of all", len(prepared), len(by)).
				WithHint("sign with all keys at once, with replace: true")
		}
		if p.tree.Nops > 0 {
			return problem.New(problem.ImageNoRoom, "the FIT cannot keep its signatures while it is rewritten").
				Seen("its structure has %d no-operation tags", p.tree.Nops).WithHint("sign with all keys at once, with replace: true")
		}
	case len(signed) > 0 && !o.Replace:
		return problem.New(problem.ImageAlreadySigned, "the configuration %s is signed already", c.Name).
			Seen("%d signatures", len(signed)).WithHint("sign the unsigned build, or set replace: true")
	default:
		for _, n := range append(signed, prepared...) {
			c.Remove(n)
		}
		prepared = nil
		for range by {
			prepared = append(prepared, c.Add(freeName(c, signatureNode)))
		}
	}
	props, _ := imageRefs(c, imgs)
	for i, s := range by {
		n := prepared[i]
		n.Props = nil
		n.SetString(propHint, s.hint)
		n.SetString(propAlgo, s.algo)
		if s.padding != "" {
			n.SetString(propPadding, s.padding)
		}
		n.SetString(propSigned, props...)
		n.Set(propValue, make([]byte, s.size))
		n.SetString("signer-name", "firmseal")
		n.SetString("signer-version", "1")
		if o.Timestamp != nil {
			n.SetU32(propStamp, *o.Timestamp)
		}
		n.SetString(propNodes, "/")
		n.SetU32(propStrings, 0, 0)
		slot := c.Name
		if i > 0 {
			slot += "/" + n.Name
		}
		p.targets = append(p.targets, target{slot: slot, conf: c, node: n, by: s})
	}
	return nil
}

// signedNodes is the list of nodes that a configuration's signature covers,
// worked out from the tree alone.
func signedNodes(c, imgs *fdt.Node, verity bool) ([]string, error) {
	list := []string{"/", "/" + configurationsNode + "/" + c.Name}
	count, paths := 2, len(list[1])+3
	add := func(s string) {
		count, paths = count+1, paths+len(s)+1
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	_, images := imageRefs(c, imgs)
	for _, im := range images {
		path := "/" + imagesNode + "/" + im.Name
		add(path)
		for _, n := range im.Nodes {
			if strings.HasPrefix(n.Name, hashNode) {
				add(path + "/" + n.Name)
			}
		}
		if im.Child(cipherNode) != nil {
			add(path + "/" + cipherNode)
		}
		if verity && im.Child(verityNode) != nil {
			add(path + "/" + verityNode)
		}
		if count > deviceMaxNodes || paths > deviceMaxPaths {
			return nil, malformed("the configuration %s has more images than U-Boot can verify", c.Name).
				Seen("it lists at most %d nodes in %d bytes; U-Boot: Failed to build hash node list", deviceMaxNodes, deviceMaxPaths)
		}
	}
	return list, nil
}

// hash fixes the lists, lays the tree out and makes the requests.
func (p *plan) hash(ctx context.Context, imgs *fdt.Node, sums map[*fdt.Node]string, o PlanOptions) error {
	verity := o.DMVerity != nil && *o.DMVerity
	lists := make([][]string, len(p.targets))
	for i, t := range p.targets {
		var err error
		if lists[i], err = signedNodes(t.conf, imgs, verity); err != nil {
			return err
		}
		t.node.SetString(propNodes, lists[i]...)
	}
	p.tree.Intern()
	names := p.tree.Strings()
	for _, t := range p.targets {
		t.node.SetU32(propStrings, 0, uint32(len(names)))
	}
	p.tree.Intern() // Set keeps the names' places; nothing is added
	if _, err := p.layout(); err != nil {
		return err
	}
	for i, t := range p.targets {
		h := t.by.spec.Hash.New()
		if err := regions(ctx, h, p.tree, lists[i]); err != nil {
			return err
		}
		h.Write(names)
		p.requests = append(p.requests, image.SignRequest{
			Slot: t.slot, Role: t.by.pub.Role, Key: t.by.pub.KeyID(),
			Alg: t.by.spec.ID, Kind: alg.Digest, Input: h.Sum(nil),
			Show: p.show(t, imgs, sums),
		})
	}
	return nil
}

// regions writes the signed parts of the structure block to h: nodes of the
// list with their properties but the image data, the bare tags and names of
// their children, and the end tag.
func regions(ctx context.Context, h io.Writer, t *fdt.Tree, list []string) error {
	inc := map[string]bool{}
	for _, s := range list {
		inc[s] = true
	}
	want, runs, in := 0, 0, false
	var stack []int
	err := t.Walk(func(k fdt.Token) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		var include bool
		switch k.Kind {
		case fdt.Begin:
			stack = append(stack, want)
			if inc[k.Path] {
				want = 2
			} else if want > 0 {
				want--
			}
			include = want > 0
		case fdt.Value:
			include = want == 2
			switch k.Name {
			case propData, propSize, propPosition, propOffset:
				include = false
			}
		case fdt.End:
			include = want > 0
			want, stack = stack[len(stack)-1], stack[:len(stack)-1]
		case fdt.Done:
			include = true
		}
		if include && !in {
			runs++
		}
		in = include
		if !include {
			return nil
		}
		_, err := k.WriteTo(h)
		return err
	})
	if err == nil && runs >= 20+7*len(list)-2 {
		return malformed("the FIT's tree is too scattered for U-Boot").Seen("%d runs of signed bytes; U-Boot: Too many hash regions", runs)
	}
	return err
}

// layout lays the tree out as it will be written.
func (p *plan) layout() (*fdt.Layout, error) {
	l, err := p.tree.Layout(p.align, p.total)
	if err != nil {
		return nil, err
	}
	if p.position && l.Size > p.oldTail {
		return nil, problem.New(problem.ImageNoRoom, "the signature does not fit before the external data").
			Seen("the structure needs %d bytes, the first image at a fixed position begins at %d", l.Size, p.oldTail).
			WithHint("build the FIT with a larger mkimage -p")
	}
	return l, nil
}

func (p *plan) show(t target, imgs *fdt.Node, sums map[*fdt.Node]string) []image.Field {
	var out []image.Field
	add := func(name, format string, a ...any) {
		out = append(out, image.Field{Name: name, Value: fmt.Sprintf(format, a...)})
	}
	if d, ok := p.tree.Root.Str(propDesc); ok {
		add("FIT", "%s", printable(d))
	}
	add("configuration", "%s", t.conf.Name)
	if d, ok := t.conf.Str(propDesc); ok {
		add("description", "%s", printable(d))
	}
	if c, ok := t.conf.Strs(propCompat); ok {
		add("compatible", "%s", printable(strings.Join(c, ", ")))
	}
	_, images := imageRefs(t.conf, imgs)
	var done []*fdt.Node
	for _, im := range images {
		if slices.Contains(done, im) {
			continue
		}
		done = append(done, im)
		kind, _ := im.Str("type")
		_, n, _ := p.extent(im) // was right in hashes
		add("image "+im.Name, "%s, %d bytes, sha256 %s", printable(kind), n, sums[im])
	}
	add("scheme", "%s, key-name-hint %s", t.by.algo+map[bool]string{true: " (PSS)"}[t.by.spec.PSS], t.by.hint)
	return out
}

// printable makes a string of the image safe to show.
func printable(s string) string {
	const most = 120
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "…"
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return strconv.QuoteToASCII(s) + cut
		}
	}
	return s + cut
}

// rawValue turns a canonical signature into the value property.
func (s signer) rawValue(sig []byte) ([]byte, error) {
	var v []byte
	var err error
	switch s.spec.Key {
	case alg.P256, alg.P384:
		v, err = alg.RawECDSA(sig, s.size/2)
		if err != nil {
			return nil, err
		}
	default:
		v = sig
	}
	if len(v) != s.size {
		return nil, problem.New(problem.SigEncoding, "a %s signature has %d bytes, not %d", s.spec.ID, s.size, len(v))
	}
	return v, nil
}
