package fit

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
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
	r := &verifier{
		ctx: ctx, src: src, dev: dev, v: &image.Verdict{Format: name, Profile: p},
		good: map[int]bool{}, strong: map[int]bool{}, checked: map[int]bool{},
	}
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
	order := []image.Stage{
		image.StageContainer, image.StageIntegrity, image.StageCoverage, image.StageKeyID,
		image.StageSignature, image.StageCertificate, image.StagePolicy, image.StageTarget,
	}
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
