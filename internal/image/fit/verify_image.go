package fit

import (
	"cmp"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

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
	used := []image.Range{
		{Off: 0, Len: 40},
		{Off: t.rsvOff, Len: t.rsvEnd - t.rsvOff},
		{Off: t.structOff, Len: t.structEnd - t.structOff},
		{Off: t.stringsOff, Len: t.strLen},
	}
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
