package fit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/problem"
)

// maxTree bounds the nodes of a report.
const maxTree = 4096

// Inspect shows the tree with its byte ranges, and what is suspicious in it.
// Nothing is checked with a key, and image data are not hashed: that is Verify.
func (Format) Inspect(ctx context.Context, src image.Source) (*image.Report, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	rep := &image.Report{Format: name, Size: src.Size()}
	t, err := fdt.Read(src, src.Size())
	var p *problem.Error
	if errors.As(err, &p) && p.Code != problem.ImageUnknownFormat {
		rep.Tree = []image.Node{{Name: "header", Off: 0, Len: min(40, src.Size())}}
		rep.Findings = []image.Finding{{
			Stage: image.StageContainer, Severity: image.Fatal, Code: p.Code, What: p.What, Actual: p.Why,
			Range: &image.Range{Off: 0, Len: min(40, src.Size())}, Cause: "the file was damaged or cut off", Next: "build the FIT again",
		}}
		return rep, nil
	}
	if err != nil {
		return nil, err
	}
	in := &inspection{t: t, rep: rep, left: maxTree}
	rep.Tree = []image.Node{
		{Name: "header", Value: fmt.Sprintf("device tree, %d bytes", t.Total), Off: 0, Len: 40},
		in.node(t.Root, "/"),
		{Name: "strings", Value: fmt.Sprintf("%d bytes", t.StringsLen), Off: t.StringsOff, Len: t.StringsLen},
	}
	if in.left <= 0 {
		in.warn(image.StageContainer, problem.ImageMalformed, nil, fmt.Sprintf("the tree has more than %d nodes and properties; the rest is not shown", maxTree))
	}
	in.findings()
	return rep, nil
}

type inspection struct {
	t    *fdt.Tree
	rep  *image.Report
	left int
}

func (in *inspection) warn(st image.Stage, code problem.Code, n *fdt.Node, what string) {
	f := image.Finding{Stage: st, Severity: image.Warn, Code: code, What: what}
	if n != nil {
		f.Range = &image.Range{Off: n.Off, Len: n.End - n.Off}
	}
	if len(in.rep.Findings) < 200 {
		in.rep.Findings = append(in.rep.Findings, f)
	}
}

func (in *inspection) node(n *fdt.Node, shown string) image.Node {
	out := image.Node{Name: shown, Off: n.Off, Len: n.End - n.Off}
	for _, p := range n.Props {
		if in.left--; in.left <= 0 {
			return out
		}
		out.Children = append(out.Children, image.Node{Name: p.Name, Value: in.value(n, p), Off: p.Off, Len: p.Len()})
	}
	for _, c := range n.Nodes {
		if in.left--; in.left <= 0 {
			return out
		}
		out.Children = append(out.Children, in.node(c, c.Name))
	}
	return out
}

// value shows a property as text, a number, or the beginning of its bytes.
func (in *inspection) value(n *fdt.Node, p *fdt.Prop) string {
	v, held := p.Held()
	if !held {
		return fmt.Sprintf("%d bytes", p.Len())
	}
	if l, ok := n.Strs(p.Name); ok && !slices.Contains(l, "") && p.Name != propValue && p.Name != propData {
		if s := strings.Join(l, ", "); printable(s) == s || len(s) > 120 {
			return printable(s)
		}
	}
	if x, ok := n.U32(p.Name); ok && p.Name != propValue {
		return fmt.Sprintf("%d (%#x)", x, x)
	}
	if len(v) > 64 {
		return hex.EncodeToString(v[:64]) + fmt.Sprintf("… (%d bytes)", len(v))
	}
	return hex.EncodeToString(v)
}

// findings looks for what has gone wrong in the field.
func (in *inspection) findings() {
	t := in.t
	imgs, confs := t.Root.Child(imagesNode), t.Root.Child(configurationsNode)
	if imgs == nil {
		in.warn(image.StageContainer, problem.ImageMalformed, t.Root, "there is no /images: this is a device tree, but not a FIT")
		return
	}
	var at func(n *fdt.Node, path string)
	at = func(n *fdt.Node, path string) {
		for _, c := range n.Nodes {
			if strings.Contains(c.Name, "@") {
				in.warn(image.StageContainer, problem.ImageMalformed, c, path+"/"+c.Name+" has a unit address: a U-Boot that checks signatures refuses it")
			}
			at(c, path+"/"+c.Name)
		}
	}
	at(t.Root, "")
	for _, im := range imgs.Nodes {
		in.image(im)
	}
	if confs == nil || len(confs.Nodes) == 0 {
		in.warn(image.StageSignature, problem.SigMissing, t.Root, "there is no configuration, so nothing that U-Boot could require a signature for")
		return
	}
	used := map[*fdt.Node]bool{}
	for _, c := range confs.Nodes {
		in.configuration(c, imgs, used)
	}
	for _, im := range imgs.Nodes {
		if !used[im] {
			in.warn(image.StageCoverage, problem.SigCoverage, im, "the image "+im.Name+" is in no configuration: no configuration signature covers it")
		}
	}
}

func (in *inspection) image(im *fdt.Node) {
	if _, _, err := extent(in.t, im, in.rep.Size); err != nil {
		p := problem.Of(err)
		in.rep.Findings = append(in.rep.Findings, image.Finding{
			Stage: image.StageIntegrity, Severity: image.Fatal, Code: p.Code, What: p.What, Actual: p.Why,
			Range: &image.Range{Off: im.Off, Len: im.End - im.Off}, Cause: "the file was cut off, or its lengths were changed", Next: "build the FIT again",
		})
	}
	strong, any := false, false
	for _, c := range im.Nodes {
		switch {
		case strings.HasPrefix(c.Name, hashNode):
			any = true
			algo, _ := c.Str(propAlgo)
			_, s := newHash(algo)
			if c.Prop(propIgnore) != nil {
				s = false
				in.warn(image.StageCoverage, problem.SigCoverage, c, c.Name+" of the image "+im.Name+" is marked "+propIgnore+": U-Boot does not check it")
			}
			strong = strong || s
			if !s {
				in.warn(image.StageIntegrity, problem.AlgWeak, c, fmt.Sprintf("%s of the image %s is %s, on which no signature can stand", c.Name, im.Name, printable(algo)))
			}
		case strings.HasPrefix(c.Name, signatureNode):
			in.warn(image.StageCoverage, problem.SigCoverage, c, "the image "+im.Name+" is signed by itself: images of different releases can be mixed")
		}
	}
	if !any {
		in.warn(image.StageIntegrity, problem.SigCoverage, im, "the image "+im.Name+" has no hash node: no configuration signature covers its data")
	} else if !strong {
		in.warn(image.StageIntegrity, problem.AlgWeak, im, "the image "+im.Name+" has no hash of sha256, sha384 or sha512")
	}
}

func (in *inspection) configuration(c, imgs *fdt.Node, used map[*fdt.Node]bool) {
	_, list := imageRefs(c, imgs)
	for _, im := range list {
		used[im] = true
	}
	signed := false
	for _, n := range c.Nodes {
		if !strings.HasPrefix(n.Name, signatureNode) {
			continue
		}
		v := n.Prop(propValue)
		if v == nil || v.Len() == 0 {
			in.warn(image.StageSignature, problem.SigMissing, n, n.Name+" of "+c.Name+" is an empty place for a signature")
			continue
		}
		signed = true
		algo, _ := n.Str(propAlgo)
		hint, _ := n.Str(propHint)
		pad, _ := n.Str(propPadding)
		in.rep.Facts.Signed = true
		if h := printable(hint); h != "" && !slices.Contains(in.rep.Facts.SignedWith, h) {
			in.rep.Facts.SignedWith = append(in.rep.Facts.SignedWith, h)
		}
		in.rep.Signatures = append(in.rep.Signatures, image.SignatureInfo{
			Slot: c.Name, Alg: schemeOf(algo, pad), KeyHint: printable(hint), Range: &image.Range{Off: v.Off, Len: v.Len()},
		})
		if strings.HasPrefix(algo, "sha1,") {
			in.warn(image.StagePolicy, problem.AlgWeak, n, n.Name+" of "+c.Name+" is made with SHA-1")
		}
		claimed, _ := n.Strs(propNodes)
		if len(claimed) == 0 {
			continue
		}
		var outside []string
		for _, verity := range []bool{false, true} {
			want, err := signedNodes(c, imgs, verity)
			if err != nil {
				in.warn(image.StageCoverage, problem.SigCoverage, c, problem.Of(err).What)
				return
			}
			outside = nil
			for _, w := range want {
				if !slices.Contains(claimed, w) {
					outside = append(outside, w)
				}
			}
			if len(outside) == 0 && len(claimed) == len(want) {
				outside = nil
				break
			}
			if len(outside) == 0 {
				outside = []string{"none"}
			}
		}
		if outside != nil {
			in.warn(image.StageCoverage, problem.SigCoverage, n, fmt.Sprintf(
				"hashed-nodes of %s in %s is not the list that must be signed (left out: %s); a U-Boot before 2026.04 believes it: CVE-2026-46728",
				n.Name, c.Name, printable(strings.Join(outside, " "))))
		}
	}
	if !signed {
		in.warn(image.StageSignature, problem.SigMissing, c, "the configuration "+c.Name+" is not signed")
	}
}

// schemeOf gives our name of U-Boot's scheme, or "".
func schemeOf(algo, padding string) alg.ID {
	for _, t := range alg.KeyTypes() {
		for _, id := range alg.For(t) {
			spec, err := alg.Lookup(id)
			if err != nil || spec.Kind != alg.Digest || spec.PSS != (padding == paddingPSS) {
				continue
			}
			h := map[int]string{32: "sha256", 48: "sha384", 64: "sha512"}[spec.Hash.Size()]
			fam := map[alg.KeyType]string{
				alg.P256: "ecdsa256", alg.P384: "ecdsa384",
				alg.RSA2048: "rsa2048", alg.RSA3072: "rsa3072", alg.RSA4096: "rsa4096",
			}[t]
			if algo == h+","+fam {
				return id
			}
		}
	}
	return ""
}
