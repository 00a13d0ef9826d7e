package mcuboot_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/imagetest"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
)

// fields describes a finished image, with a reader of the test's own.
func fields(tb testing.TB, out []byte) []imagetest.Field {
	tb.Helper()
	le := binary.LittleEndian
	var fs []imagetest.Field
	at := int64(0)
	add := func(name string, n int64, k imagetest.Kind) *imagetest.Field {
		fs = append(fs, imagetest.Field{Name: name, Off: at, Len: n, Kind: k, LittleEndian: true})
		at += n
		return &fs[len(fs)-1]
	}
	hdr, prot, size := int64(le.Uint16(out[8:])), int64(le.Uint16(out[10:])), int64(le.Uint32(out[12:]))
	add("ih_magic", 4, imagetest.Magic)
	add("ih_load_addr", 4, imagetest.Other)
	add("ih_hdr_size", 2, imagetest.Length)
	add("ih_protect_tlv_size", 2, imagetest.Length)
	add("ih_img_size", 4, imagetest.Length)
	add("ih_flags", 4, imagetest.Flag)
	add("ih_ver", 8, imagetest.Other)
	add("header pad", 4, imagetest.Padding)
	add("header padding", hdr-32, imagetest.Padding)
	add("payload", size, imagetest.Payload)
	tlvs := func(name string) int64 {
		end := at + int64(le.Uint16(out[at+2:]))
		add(name+" magic", 2, imagetest.Magic)
		add(name+" total", 2, imagetest.Length)
		for at < end {
			typ, n := le.Uint16(out[at:]), int64(le.Uint16(out[at+2:]))
			kind := imagetest.Other
			if typ >= 0x20 && typ <= 0x24 {
				kind = imagetest.Signature
			}
			add(fmt.Sprintf("%s type %#x", name, typ), 2, imagetest.Other)
			add(fmt.Sprintf("%s length of %#x", name, typ), 2, imagetest.Length)
			add(fmt.Sprintf("%s value of %#x", name, typ), n, kind)
		}
		return end
	}
	if prot > 0 {
		tlvs("protected")
	}
	end := tlvs("plain")
	if end != at {
		tb.Fatalf("TLVs end at %d, not %d", at, end)
	}
	add("the rest of the slot", int64(len(out))-at, imagetest.Padding).Outside = "the bootloader's own area: it does not run these bytes"
	return fs
}

// pairs marks the keys and signatures of several: a device that knows both
// keys goes by the last signature, and skips one whose key TLV it cannot read.
func pairs(tb testing.TB, out []byte) []imagetest.Field {
	fs := fields(tb, out)
	first := false
	last := 0
	for i := range fs {
		first = first || fs[i].Name == "plain type 0x1"
		if first {
			fs[i].Outside = "the other signature is enough"
		}
		if fs[i].Kind == imagetest.Signature {
			last = i
		}
	}
	fs[last].Outside = ""
	return fs
}

// editPlain changes the plain TLVs of a finished image and mends their total.
func editPlain(out []byte, f func(tlvs []byte) []byte) []byte {
	off := plainArea(out)
	total := int(binary.LittleEndian.Uint16(out[off+2:]))
	tlvs := f(bytes.Clone(out[off+4 : off+total]))
	head := binary.LittleEndian.AppendUint16(append(bytes.Clone(out[:off]), 0x07, 0x69), uint16(4+len(tlvs)))
	return append(append(head, tlvs...), out[off+total:]...)
}

// cutTLV takes the first TLV off.
func cutTLV(b []byte) (first, rest []byte) {
	n := 4 + int(binary.LittleEndian.Uint16(b[2:]))
	return b[:n:n], b[n:]
}

var seeds = []imagetest.Seed{
	{Name: "the signature before its key", Output: func(_ testing.TB, out []byte) []byte {
		return editPlain(out, func(b []byte) []byte {
			hash, rest := cutTLV(b)
			key, sig := cutTLV(rest)
			return bytes.Join([][]byte{hash, sig, key}, nil)
		})
	}},
	{Name: "no hash", Output: func(_ testing.TB, out []byte) []byte {
		return editPlain(out, func(b []byte) []byte { _, rest := cutTLV(b); return rest })
	}},
	{Name: "a hash over the payload alone", Output: func(_ testing.TB, out []byte) []byte {
		hdr, size := int(binary.LittleEndian.Uint16(out[8:])), int(binary.LittleEndian.Uint32(out[12:]))
		return editPlain(out, func(b []byte) []byte {
			h := sha256.Sum256(out[hdr : hdr+size])
			_, rest := cutTLV(b)
			return bytes.Join([][]byte{{0x10, 0, 32, 0}, h[:], rest}, nil)
		})
	}},
	{Name: "a header that counts itself into the payload", Output: func(_ testing.TB, out []byte) []byte {
		binary.LittleEndian.PutUint32(out[12:], binary.LittleEndian.Uint32(out[12:])+uint32(binary.LittleEndian.Uint16(out[8:])))
		return out
	}},
	{Name: "a total that leaves the info header out", Output: func(_ testing.TB, out []byte) []byte {
		off := plainArea(out)
		binary.LittleEndian.PutUint16(out[off+2:], binary.LittleEndian.Uint16(out[off+2:])-4)
		return out
	}},
	{Name: "a big-endian total", Output: func(_ testing.TB, out []byte) []byte {
		off := plainArea(out)
		out[off+2], out[off+3] = out[off+3], out[off+2]
		return out
	}},
	{Name: "a version set after signing", Output: func(_ testing.TB, out []byte) []byte { out[20]++; return out }},
	{Name: "protected TLVs not announced", Output: func(_ testing.TB, out []byte) []byte {
		binary.LittleEndian.PutUint16(out[10:], 0)
		return out
	}},
	{Name: "a counter raised after signing", Output: func(tb testing.TB, out []byte) []byte {
		off := plainArea(out) - int(binary.LittleEndian.Uint16(out[10:]))
		if binary.LittleEndian.Uint16(out[off+4:]) != 0x50 {
			tb.Fatal("the first protected TLV is not the counter")
		}
		out[off+8]++
		return out
	}},
}

func TestConformance(t *testing.T) {
	stored := uint64(7)
	withCounter := func(anchors []image.TrustedKey) image.Trust { return image.Trust{Keys: anchors, Counter: &stored} }
	full := base(map[string]any{
		"pad-header": true, "security-counter": 7, "slot-size": 0x4000, "confirm": true, "align": 16,
		"dependencies": []any{map[string]any{"image": 1, "version": "1.0.0"}},
		"custom-tlv":   []any{map[string]any{"type": "0xa0", "value": "0x0102"}, map[string]any{"type": "0xa3", "value": "text"}},
		"vid":          "12345678-1234-5678-1234-567812345678",
	})
	unsigned := headerOnly(0x80, payload(600))
	first, _ := mustSign(t, zephyr(0x40, 300), map[string]any{"header-size": 0x40, "version": "3.0.0", "security-counter": 8}, alg.RSA2048)
	cases := []imagetest.Case{
		{
			Name: "p256, pad-header", Source: payload(700), Options: options(t, base(map[string]any{"pad-header": true, "security-counter": "auto"})),
			Keys: []imagetest.Key{{Type: alg.P256}}, Fields: fields, Seeds: seeds,
			Big: func(size int64) image.Source { return imagetest.Sparse(size, []byte{0x20}) },
		},
		{
			Name: "p384, Zephyr, key in the image", Source: zephyr(0x40, 500),
			Options: options(t, map[string]any{"header-size": "0x40", "version": "1.0.0", "security-counter": 9, "public-key-format": "full"}),
			Keys:    []imagetest.Key{{Type: alg.P384}}, Fields: fields, Trust: withCounter, Seeds: seeds,
			Profile: image.Profile{Verifier: "mcuboot", Version: "2.4.0", Options: image.Options(`{"keys":"hw-key"}`)},
		},
		{
			Name: "rsa2048", Source: zephyr(0x20, 100), Options: options(t, map[string]any{"header-size": 32, "version": "0.0.1", "security-counter": 1}),
			Keys: []imagetest.Key{{Type: alg.RSA2048, Alg: alg.RSA2048PSSSHA256}}, Fields: fields, Seeds: seeds,
		},
		{
			Name: "rsa3072, a header without TLVs", Source: unsigned, Options: options(t, map[string]any{"security-counter": 2}),
			Keys: []imagetest.Key{{Type: alg.RSA3072}}, Fields: fields, Seeds: seeds,
		},
		{
			Name: "ed25519, everything", Source: payload(900), Options: options(t, full), Trust: withCounter,
			Keys: []imagetest.Key{{Type: alg.Ed25519}}, Fields: fields, Seeds: seeds,
		},
		{
			Name: "ed25519 over SHA-512", Source: payload(90), Options: options(t, base(map[string]any{"pad-header": true, "sha": "512", "security-counter": 2})),
			Keys: []imagetest.Key{{Type: alg.Ed25519}}, Fields: fields, Seeds: seeds,
			Profile: image.Profile{Options: image.Options(`{"sha":"512"}`)},
		},
		{
			Name: "two p256 keys", Source: payload(70), Options: options(t, base(map[string]any{"pad-header": true})),
			Keys: []imagetest.Key{{Type: alg.P256}, {Type: alg.P256, Role: "next"}}, Fields: pairs,
		},
		{
			Name: "replace", Source: first, Signed: true, Options: options(t, map[string]any{"replace": true}),
			Keys: []imagetest.Key{{Type: alg.P256}}, Fields: fields, Trust: withCounter, Seeds: seeds,
		},
	}
	imagetest.Run(t, mcuboot.New(), cases)
}

// headerOnly is an image whose build made the header and nothing behind the
// payload.
func headerOnly(hdr int, body []byte) []byte {
	b := make([]byte, hdr)
	le := binary.LittleEndian
	le.PutUint32(b, 0x96f3b83d)
	le.PutUint16(b[8:], uint16(hdr))
	le.PutUint32(b[12:], uint32(len(body)))
	b[20], b[21] = 4, 5
	return append(b, body...)
}
