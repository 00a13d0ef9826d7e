package fit_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/image/imagetest"
)

// fields says which bytes of a signed FIT are what. Whatever is not named here
// must not be changed unseen.
func fields(tb testing.TB, out []byte) []imagetest.Field {
	t, err := fdt.Read(bytes.NewReader(out), int64(len(out)))
	if err != nil {
		tb.Fatal(err)
	}
	const (
		length = imagetest.Length
		other  = imagetest.Other
	)
	be := func(off int64) int64 { return int64(binary.BigEndian.Uint32(out[off:])) }
	f := []imagetest.Field{
		{Name: "magic", Off: 0, Len: 4, Kind: imagetest.Magic},
		{Name: "totalsize", Off: 4, Len: 4, Kind: length, Outside: "it may cut the padding off, or take it longer"},
		{Name: "off_dt_struct", Off: 8, Len: 4, Kind: length},
		{Name: "off_dt_strings", Off: 12, Len: 4, Kind: length},
		{Name: "off_mem_rsvmap", Off: 16, Len: 4, Kind: length, Outside: "U-Boot does not look at the reservations of a FIT"},
		{Name: "version", Off: 20, Len: 4, Kind: length},
		{Name: "last_comp_version", Off: 24, Len: 4, Kind: length, Outside: "every version up to 17 is the same to libfdt"},
		{Name: "boot_cpuid_phys", Off: 28, Len: 4, Kind: other, Outside: "U-Boot does not read it"},
		{Name: "size_dt_strings", Off: 32, Len: 4, Kind: length, Outside: "a longer block has names that nobody uses"},
		{Name: "size_dt_struct", Off: 36, Len: 4, Kind: length},
		{Name: "reservations", Off: be(16), Len: 16, Kind: other, Outside: "U-Boot does not look at the reservations of a FIT"},
		{Name: "strings", Off: t.StringsOff, Len: t.StringsLen, Kind: other},
	}
	end := t.Total
	const bare = "U-Boot signs the tags and names of signature nodes only"
	confs := t.Root.Child("configurations")
	if p := confs.Prop("default"); p != nil {
		f = append(f, imagetest.Field{
			Name: "default", Off: p.Off - 12, Len: 12 + p.Len() + (4-p.Len()%4)%4, Kind: other,
			Outside: "U-Boot does not sign which configuration is the default",
		})
	}
	for _, c := range confs.Nodes {
		for _, s := range c.Nodes {
			if !strings.HasPrefix(s.Name, "signature") {
				continue
			}
			from := s.Off + 4 + int64(len(s.Name))/4*4 + 4
			covered := []*fdt.Prop{s.Prop("algo"), s.Prop("value")}
			slices.SortFunc(covered, func(a, b *fdt.Prop) int { return int(a.Off - b.Off) })
			for _, p := range covered {
				kind := other
				if p.Name == "value" {
					kind = imagetest.Signature
				}
				f = append(f,
					imagetest.Field{Name: "before " + p.Name, Off: from, Len: p.Off - from, Kind: other, Outside: bare},
					imagetest.Field{Name: p.Name, Off: p.Off, Len: p.Len(), Kind: kind})
				from = p.Off + p.Len()
			}
			f = append(f, imagetest.Field{Name: "rest of " + s.Name, Off: from, Len: s.End - 4 - from, Kind: other, Outside: bare})
		}
	}
	for _, im := range t.Root.Child("images").Nodes {
		if p := im.Prop("data"); p != nil {
			f = append(f,
				imagetest.Field{Name: im.Name + " data length", Off: p.Off - 8, Len: 4, Kind: length},
				imagetest.Field{Name: im.Name + " data", Off: p.Off, Len: p.Len(), Kind: imagetest.Payload})
			if pad := (4 - p.Len()%4) % 4; pad > 0 {
				f = append(f, imagetest.Field{
					Name: im.Name + " padding", Off: p.Off + p.Len(), Len: pad, Kind: imagetest.Padding,
					Outside: "the hash covers the data, not what aligns the next tag",
				})
			}
		}
		base, name := t.Total, "data-offset"
		if im.Prop(name) == nil {
			base, name = 0, "data-position"
		}
		if v, ok := im.U32(name); ok {
			n, _ := im.U32("data-size")
			off := base + int64(v)
			f = append(f,
				imagetest.Field{Name: im.Name + " " + name, Off: im.Prop(name).Off, Len: 4, Kind: length},
				imagetest.Field{Name: im.Name + " data-size", Off: im.Prop("data-size").Off, Len: 4, Kind: length},
				imagetest.Field{Name: im.Name + " data", Off: off, Len: int64(n), Kind: imagetest.Payload})
			if off > t.Total {
				f = append(f, imagetest.Field{
					Name: "gap before " + im.Name, Off: t.Total, Len: off - t.Total, Kind: imagetest.Padding,
					Outside: "no image and no block uses these bytes; Verify warns of them",
				})
			}
			end = max(end, off+int64(n))
		}
	}
	const unused = "no image and no block uses these bytes; Verify warns of them"
	tail := t.StringsOff + t.StringsLen
	f = append(f, imagetest.Field{Name: "padding", Off: tail, Len: t.Total - tail, Kind: imagetest.Padding, Outside: unused})
	return append(f, imagetest.Field{Name: "behind the end", Off: end, Len: int64(len(out)) - end, Kind: imagetest.Padding, Outside: unused})
}

// external is a FIT whose kernel data lie behind the tree: n bytes that follow
// the returned head. position gives data-position instead of data-offset.
func external(t testing.TB, n int64, position bool, hashes bool) []byte {
	t.Helper()
	head := edit(t, fitdemo.FIT("5.0.0"), func(root *fdt.Node) {
		k := at(root, "images/kernel-1")
		var keep []*fdt.Prop
		for _, p := range k.Props {
			if p.Name != "data" {
				keep = append(keep, p)
			}
		}
		k.Props = keep
		k.SetU32("data-size", uint32(n))
		if position {
			k.SetU32("data-position", 0x2000)
		} else {
			k.SetU32("data-offset", 0)
		}
		if !hashes {
			k.Remove(k.Child("hash-1"))
		}
	})
	if position {
		head = append(head, make([]byte, 0x2000-len(head))...)
	}
	return head
}

// TestConformance holds the format to the contract of image.Format.
func TestConformance(t *testing.T) {
	body := bytes.Repeat([]byte("firmware"), 300)
	one := fitdemo.FIT("1.0.0")
	noDefault := edit(t, fitdemo.FIT("1.0.0", "conf-1", "conf-2"), func(root *fdt.Node) {
		at(root, "configurations").Props = nil
	})
	first := sign(t, one, fit.PlanOptions{}, "", shared(t, "old", alg.RSA2048))
	odd := edit(t, one, func(root *fdt.Node) {
		at(root, "images/kernel-1").Set("data", append(fitdemo.Kernel("1.0.0"), 'x'))
		at(root, "images/kernel-1").Remove(at(root, "images/kernel-1/hash-1"))
	})
	big := func(size int64) image.Source {
		const room = 1 << 12
		return imagetest.Sparse(size+room, external(t, size, false, false))
	}
	seeds := []imagetest.Seed{{
		Name: "an image's hash left out of the tree",
		Output: func(tb testing.TB, out []byte) []byte {
			return edit(tb, out, func(root *fdt.Node) { k := at(root, "images/kernel-1"); k.Remove(k.Child("hash-1")) })
		},
	}, {
		Name: "strings in another order",
		Output: func(tb testing.TB, out []byte) []byte {
			return bytes.Replace(out, []byte("load\x00entry\x00"), []byte("entry\x00load\x00"), 1)
		},
	}, {
		Name: "signature of no bytes", // the node is there, the value is zeros
		Output: func(tb testing.TB, out []byte) []byte {
			return edit(tb, out, func(root *fdt.Node) {
				p := at(root, "configurations/conf-1/signature-1")
				p.Set("value", make([]byte, p.Prop("value").Len()))
			})
		},
	}}
	cases := []imagetest.Case{
		{Name: "rsa2048", Source: one, Keys: []imagetest.Key{{Type: alg.RSA2048}}, Fields: fields, Seeds: seeds},
		{
			Name: "rsa3072 pss", Source: one, Options: options(t, fit.PlanOptions{Padding: "pss"}),
			Keys: []imagetest.Key{{Type: alg.RSA3072}}, Fields: fields, Seeds: seeds,
		},
		{Name: "p256, two configurations", Source: noDefault, Keys: []imagetest.Key{{Type: alg.P256}}, Fields: fields, Seeds: seeds},
		{Name: "p384, no hash, odd length", Source: odd, Keys: []imagetest.Key{{Type: alg.P384}}, Fields: fields},
		{
			Name: "external data", Source: append(external(t, int64(len(body)), false, false), body...),
			Keys: []imagetest.Key{{Type: alg.P256}}, Fields: fields, Big: big,
		},
		{
			Name: "external data at a position", Source: append(external(t, int64(len(body)), true, false), body...),
			Keys: []imagetest.Key{{Type: alg.RSA2048}}, Fields: fields,
		},
		{
			Name: "two keys", Source: one, Keys: []imagetest.Key{{Type: alg.P256}, {Type: alg.RSA2048, Role: "next"}},
			Fields: fields,
		},
		{
			Name: "replace", Source: first, Signed: true, Options: options(t, fit.PlanOptions{Replace: true}),
			Keys: []imagetest.Key{{Type: alg.P256}}, Fields: fields, Seeds: seeds,
		},
	}
	imagetest.Run(t, fit.New(), cases)
}

// TestApart proves that Verify shares constants with the rest and nothing else.
func TestApart(t *testing.T) {
	imagetest.Apart(t, ".", []string{"verify*.go"}, map[string]string{
		"Format": "the type that both halves' methods belong to; it has no fields",
	})
}
