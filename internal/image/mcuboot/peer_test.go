package mcuboot_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/imagetest"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
	"github.com/firmseal/firmseal/internal/peertest"
)

// imgtool is the judge with a folder for its files.
type imgtool struct {
	path, dir string
}

func newImgtool(t *testing.T) imgtool {
	t.Helper()
	return imgtool{peertest.Tool(t, "imgtool"), t.TempDir()}
}

// run gives what imgtool prints, and whether it exits 0.
func (i imgtool) run(t *testing.T, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), i.path, args...)
	cmd.Dir = i.dir
	out, err := cmd.CombinedOutput()
	if _, exit := err.(*exec.ExitError); err != nil && !exit {
		t.Fatalf("imgtool %q: %v", args, err)
	}
	return string(out), err == nil
}

func (i imgtool) must(t *testing.T, args ...string) string {
	t.Helper()
	out, ok := i.run(t, args...)
	if !ok {
		t.Fatalf("imgtool %q: %s", args, out)
	}
	return out
}

func (i imgtool) write(t *testing.T, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(i.dir, name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (i imgtool) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(i.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// key writes a private and a public PEM.
func (i imgtool) key(t *testing.T, name string, s crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	i.write(t, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	spki, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	i.write(t, name+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
}

// Both directions for every key type: imgtool accepts ours, we accept
// imgtool's, the two files agree in every byte that is not random, and both
// refuse another key, a flipped byte and a cut.
func TestPeerImgtoolBothWays(t *testing.T) {
	t.Parallel()
	for _, kt := range keyTypes {
		for _, c := range []struct {
			name string
			args []string
			o    map[string]any
			src  []byte
			prof string
		}{
			{
				"Zephyr, counter",
				[]string{"-H", "0x200", "-S", "0x10000", "-v", "1.2.3+4", "-s", "auto", "--align", "4"},
				map[string]any{"header-size": "0x200", "slot-size": "0x10000", "version": "1.2.3+4", "security-counter": "auto", "align": 4},
				zephyr(0x200, 5001), `{}`,
			},
			{
				"pad-header, everything, padded slot",
				[]string{
					"-H", "0x40", "--pad-header", "-S", "0x8000", "-v", "9.8.7", "-s", "0x55", "--align", "16", "--confirm", "-M", "64", "-R", "0",
					"-d", "(1, 1.2.3+4), (2, 5.0.0)", "--custom-tlv", "0xa0", "0x010203", "--custom-tlv", "0x1a5", "text", "-F", "0x08010000",
					"--vid", "12345678-1234-5678-1234-567812345678", "--cid", "00112233445566778899aabbccddeeff", "--public-key-format", "full", "--non-bootable",
				},
				map[string]any{
					"header-size": 64, "pad-header": true, "slot-size": 0x8000, "version": "9.8.7", "security-counter": 0x55, "align": 16, "confirm": true,
					"max-sectors": 64, "erased-val": "0", "rom-fixed": "0x08010000", "public-key-format": "full", "non-bootable": true,
					"dependencies": []any{map[string]any{"image": 1, "version": "1.2.3+4"}, map[string]any{"image": 2, "version": "5.0.0"}},
					"custom-tlv":   []any{map[string]any{"type": "0xa0", "value": "0x010203"}, map[string]any{"type": "0x1a5", "value": "text"}},
					"vid":          "12345678-1234-5678-1234-567812345678", "cid": "00112233445566778899aabbccddeeff",
				},
				payload(777), `{"keys":"hw-key","non-bootable":true}`,
			},
			{
				"overwrite-only, RAM",
				[]string{"-H", "32", "--pad-header", "-S", "0x4000", "-v", "0.0.1", "--overwrite-only", "--pad", "-L", "0x20001000", "--pad-sig"},
				map[string]any{"header-size": 32, "pad-header": true, "slot-size": 0x4000, "version": "0.0.1", "overwrite-only": true, "pad": true, "load-addr": "0x20001000", "pad-sig": true},
				payload(4000), `{}`,
			},
		} {
			t.Run(string(kt)+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				tool := newImgtool(t)
				signer, pub := imagetest.TestKey(t, kt, 20)
				other, otherPub := imagetest.TestKey(t, kt, 21)
				tool.key(t, "key", signer)
				tool.key(t, "other", other)
				tool.write(t, "in.bin", c.src)

				ours, err := signWith(t.Context(), c.src, options(t, c.o), []crypto.Signer{signer}, []image.PublicMaterial{pub})
				if err != nil {
					t.Fatal(err)
				}
				tool.write(t, "ours.bin", ours)
				if out := tool.must(t, "verify", "-k", "key.pub", "ours.bin"); !strings.Contains(out, "Image was correctly validated") {
					t.Errorf("imgtool on ours: %s", out)
				}
				tool.must(t, append(append([]string{"sign", "-k", "key.pem"}, c.args...), "in.bin", "theirs.bin")...)
				theirs := tool.read(t, "theirs.bin")

				stored := uint64(1)
				trust := image.Trust{Keys: []image.TrustedKey{{Name: "key", SPKI: pub.SPKI}}}
				if c.o["security-counter"] != nil {
					trust.Counter = &stored
				}
				judge := func(b []byte, tr image.Trust) *image.Verdict {
					v, err := mcuboot.New().Verify(t.Context(), image.Bytes(b), tr, image.Profile{Verifier: "mcuboot", Options: image.Options(c.prof)})
					if err != nil {
						t.Fatal(err)
					}
					return v
				}
				for name, b := range map[string][]byte{"ours": ours, "theirs": theirs} {
					if v := judge(b, trust); v.Refusal() != nil {
						t.Errorf("our Verify on %s: %v", name, v.Refusal())
					}
				}
				compare(t, kt, ours, theirs)
				checkDump(t, tool, ours)

				// What both must refuse, and in which words.
				wrong := trust
				wrong.Keys = []image.TrustedKey{{Name: "key", SPKI: otherPub.SPKI}}
				flipped := bytes.Clone(ours)
				flipped[0x200+7] ^= 1
				cut := ours[:plainArea(ours)+2]
				for _, r := range []struct {
					name, key string
					b         []byte
					trust     image.Trust
					says      string
				}{
					{"another key", "other.pub", ours, wrong, "No signature found for the given key"},
					{"a flipped byte", "key.pub", flipped, trust, "Image has an invalid hash"},
					{"a cut", "key.pub", cut, trust, "struct.error"},
				} {
					tool.write(t, "bad.bin", r.b)
					if out, ok := tool.run(t, "verify", "-k", r.key, "bad.bin"); ok || !strings.Contains(out, r.says) {
						t.Errorf("imgtool on %s: %v, %s", r.name, ok, out)
					}
					v := judge(r.b, r.trust)
					if v.Accepted || v.Valid {
						t.Errorf("our Verify takes %s", r.name)
					}
					words := r.says
					if words == "struct.error" {
						words = "a Python traceback"
					}
					if f := fatal(v); !strings.Contains(strings.Join(f.Device, "\n"), "imgtool: "+words) {
						t.Errorf("for %s we say %q", r.name, f.Device)
					}
				}
			})
		}
	}
}

// compare holds two signed files to be equal but for a random signature.
func compare(t *testing.T, kt alg.KeyType, ours, theirs []byte) {
	t.Helper()
	if kt == alg.Ed25519 {
		if !bytes.Equal(ours, theirs) {
			t.Errorf("our file and imgtool's differ:\n% x\n% x", ours[:64], theirs[:64])
		}
		return
	}
	split := func(b []byte) (before, sig, after []byte) {
		off := plainArea(b)
		end := off + int(binary.LittleEndian.Uint16(b[off+2:]))
		at := off + 4
		for {
			n := int(binary.LittleEndian.Uint16(b[at+2:]))
			if at+4+n >= end {
				return b[:at+2], b[at+4 : at+4+n], b[end:]
			}
			at += 4 + n
		}
	}
	ob, osig, oa := split(ours)
	tb, tsig, ta := split(theirs)
	// The total of the area counts an ECDSA signature's length.
	off := plainArea(ours) + 2
	ob, tb = bytes.Clone(ob), bytes.Clone(tb)
	if len(ob) != len(tb) {
		t.Fatalf("before the signature: %d and %d bytes", len(ob), len(tb))
	}
	if int(binary.LittleEndian.Uint16(ob[off:]))-len(osig) != int(binary.LittleEndian.Uint16(tb[off:]))-len(tsig) {
		t.Error("the totals differ by more than the signatures do")
	}
	copy(ob[off:off+2], tb[off:])
	if !bytes.Equal(ob, tb) {
		t.Errorf("before the signature the files differ:\n% x\n% x", ob, tb)
	}
	// Padding fills up what a shorter signature leaves.
	if len(ours) != len(theirs) && len(oa)+len(ta) != 0 {
		t.Errorf("padded to %d and %d bytes", len(ours), len(theirs))
	}
	n := min(len(oa), len(ta))
	if !bytes.Equal(oa[len(oa)-n:], ta[len(ta)-n:]) {
		t.Error("the trailers differ")
	}
}

// checkDump compares our Inspect with imgtool dumpinfo, field by field.
func checkDump(t *testing.T, tool imgtool, b []byte) {
	t.Helper()
	out := tool.must(t, "dumpinfo", "--format", "json", "ours.bin")
	var d struct {
		Header struct {
			Magic    uint32 `json:"magic"`
			LoadAddr uint32 `json:"load_addr"`
			HdrSize  int64  `json:"hdr_size"`
			Prot     int64  `json:"protected_tlv_size"`
			ImgSize  int64  `json:"img_size"`
			Flags    uint32 `json:"flags"`
			Version  string `json:"version"`
		} `json:"header"`
		Area struct {
			Prot []dumpTLV `json:"tlvs_prot"`
			TLVs []dumpTLV `json:"tlvs"`
		} `json:"tlv_area"`
		Trailer struct {
			ImageOK *int `json:"image_ok"`
		} `json:"trailer"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &d); err != nil {
		t.Fatalf("dumpinfo: %v: %s", err, out)
	}
	r, err := mcuboot.New().Inspect(t.Context(), image.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]image.Node{}
	for _, n := range r.Tree {
		nodes[n.Name] = n
	}
	for i, want := range []string{
		fmt.Sprintf("%#x", d.Header.Magic), fmt.Sprintf("%#x", d.Header.LoadAddr), fmt.Sprintf("%#x", d.Header.HdrSize),
		fmt.Sprintf("%#x", d.Header.Prot), fmt.Sprintf("%#x", d.Header.ImgSize), fmt.Sprintf("%#x", d.Header.Flags), d.Header.Version,
	} {
		got, _, _ := strings.Cut(nodes["header"].Children[i].Value, " ")
		if got != want {
			t.Errorf("%s is %s, dumpinfo says %s", nodes["header"].Children[i].Name, got, want)
		}
	}
	for name, want := range map[string][]dumpTLV{"protected TLVs": d.Area.Prot, "TLVs": d.Area.TLVs} {
		got := nodes[name].Children
		if len(got) != len(want) {
			t.Fatalf("%s: %d, dumpinfo says %d", name, len(got), len(want))
		}
		for i, w := range want {
			raw := b[got[i].Off : got[i].Off+got[i].Len]
			if binary.LittleEndian.Uint16(raw) != w.Type || hex.EncodeToString(raw[4:]) != w.Data {
				t.Errorf("%s %d: % x, dumpinfo says %+v", name, i, raw, w)
			}
			if w.Name != "UNKNOWN" && got[i].Name != w.Name {
				t.Errorf("we name %s what dumpinfo names %s", got[i].Name, w.Name)
			}
		}
	}
	if ok := d.Trailer.ImageOK; ok != nil {
		for _, n := range nodes["slot trailer"].Children {
			if n.Name == "image_ok" && int(b[n.Off]) != *ok {
				t.Errorf("image_ok is %d at %d, dumpinfo says %d", b[n.Off], n.Off, *ok)
			}
		}
		if len(nodes["slot trailer"].Children) == 0 {
			t.Error("Inspect sees no trailer")
		}
	}
}

type dumpTLV struct {
	Type uint16 `json:"type"`
	Name string `json:"type_name"`
	Data string `json:"data"`
}

// What we say imgtool would say is what it says, for images bent in every way
// that the two can read differently.
func TestPeerImgtoolWords(t *testing.T) {
	t.Parallel()
	tool := newImgtool(t)
	o := map[string]any{"header-size": 32, "version": "1.0.0", "security-counter": 3}
	src := zephyr(32, 64)
	signer, pub := imagetest.TestKey(t, alg.P256, 22)
	edSigner, edPub := imagetest.TestKey(t, alg.Ed25519, 22)
	tool.key(t, "p256", signer)
	tool.key(t, "ed25519", edSigner)
	p256, err := signWith(t.Context(), src, options(t, o), []crypto.Signer{signer}, []image.PublicMaterial{pub})
	if err != nil {
		t.Fatal(err)
	}
	ed, err := signWith(t.Context(), src, options(t, o), []crypto.Signer{edSigner}, []image.PublicMaterial{edPub})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	bend := func(b []byte, f func(b []byte)) []byte { c := bytes.Clone(b); f(c); return c }
	off := plainArea(p256)
	for _, c := range []struct {
		name, key string
		b         []byte
	}{
		{"good", "p256", p256},
		{"good Ed25519", "ed25519", ed},
		{"key of another type", "ed25519", p256},
		{"nothing", "p256", nil},
		{"a header", "p256", p256[:32]},
		{"erased flash", "p256", bytes.Repeat([]byte{0xff}, 128)},
		{"magic", "p256", bend(p256, func(b []byte) { b[0] ^= 1 })},
		{"payload", "p256", bend(p256, func(b []byte) { b[40] ^= 1 })},
		{"header size", "p256", bend(p256, func(b []byte) { b[8]++ })},
		{"protected size in the header only", "p256", bend(p256, func(b []byte) { b[10] ^= 4 })},
		{"protected size in the area only", "p256", bend(p256, func(b []byte) { b[32+64+2] ^= 4 })},
		{"protected magic", "p256", bend(p256, func(b []byte) { b[32+64] ^= 1 })},
		{"plain magic", "p256", bend(p256, func(b []byte) { b[off] ^= 1 })},
		{"no TLVs", "p256", bend(p256, func(b []byte) { le.PutUint16(b[off+2:], 4) })},
		{"total too large", "p256", bend(p256, func(b []byte) { le.PutUint16(b[off+2:], le.Uint16(b[off+2:])+3) })},
		{"total huge", "ed25519", bend(ed, func(b []byte) { le.PutUint16(b[off+2:], 0xffff) })},
		{"cut in the signature", "p256", p256[:len(p256)-20]},
		{"cut before the signature", "p256", p256[:len(p256)-80]},
		{"signature", "p256", bend(p256, func(b []byte) { b[len(b)-1] ^= 1 })},
		{"key hash", "p256", bend(p256, func(b []byte) { b[off+4+36+4] ^= 1 })},
		{"a hash in 16 bits, first", "p256", addPlain(p256, true, 0x1010, make([]byte, 32))},
		{"a right hash of another type in 16 bits", "p256", addPlain(p256, true, 0x0111, make([]byte, 48))},
		{"pure in 16 bits", "p256", addPlain(p256, false, 0x0325, []byte{1})},
		{"a wrong signature in 16 bits, first", "p256", addPlain(p256, true, 0x0122, make([]byte, 70))},
		{"an empty signature in 16 bits, first", "p256", addPlain(p256, true, 0x0122, nil)},
		{"an Ed25519 signature before the hash", "ed25519", addPlain(ed, true, 0x24, make([]byte, 64))},
		{"hash type in 16 bits", "p256", bend(p256, func(b []byte) { b[off+5] = 7 })},
		{"signature type in 16 bits", "p256", bend(p256, func(b []byte) { b[off+4+36+36+1] = 7 })},
		{"trailing bytes", "p256", append(bytes.Clone(p256), 1, 2, 3)},
	} {
		t.Run(c.name, func(t *testing.T) {
			tool.write(t, "x.bin", c.b)
			spki := map[string][]byte{"p256": pub.SPKI, "ed25519": edPub.SPKI}[c.key]
			v := verify(t, c.b, image.Trust{Keys: []image.TrustedKey{{SPKI: spki}}}, map[string]any{"allow-list": false})
			said := ""
			for _, f := range v.Findings {
				for _, s := range append(f.Device, f.What, f.Actual) {
					if _, w, ok := strings.Cut(s, "imgtool: "); ok {
						said = w
					}
					if _, w, ok := strings.Cut(s, "imgtool verify decides like the device: "); ok {
						said = w
					}
				}
			}
			out, ok := tool.run(t, "verify", "-k", c.key+".pub", "x.bin")
			if said == "a Python traceback" {
				if ok || !strings.Contains(out, "Traceback") {
					t.Errorf("we expect a traceback, imgtool says %v, %s", ok, out)
				}
				return
			}
			if said == "" || !strings.Contains(out, said) || ok != (said == "Image was correctly validated") {
				t.Errorf("we say %q, imgtool (%v) %s", said, ok, out)
			}
			t.Logf("device accepts: %v; imgtool: %s", v.Accepted, said)
		})
	}
}

// ExportTrust prints what imgtool prints, but for the first line's name.
func TestPeerImgtoolExportTrust(t *testing.T) {
	t.Parallel()
	for _, kt := range keyTypes {
		t.Run(string(kt), func(t *testing.T) {
			t.Parallel()
			tool := newImgtool(t)
			signer, pub := imagetest.TestKey(t, kt, 23)
			tool.key(t, "key", signer)
			arts, err := mcuboot.New().ExportTrust([]image.PublicMaterial{pub}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{
				tool.must(t, "getpub", "-k", "key.pub", "-e", "lang-c"),
				tool.must(t, "getpubhash", "-k", "key.pub"),
				tool.must(t, "getpub", "-k", "key.pub", "-e", "raw"),
			} {
				got := string(arts[i].Data)
				if i < 2 {
					_, got, _ = strings.Cut(got, "\n")
					_, want, _ = strings.Cut(want, "\n")
				}
				if got != want {
					t.Errorf("%s:\n%s\nimgtool:\n%s", arts[i].Name, got, want)
				}
			}
		})
	}
}

// Real firmware goes through: signed by us, judged by imgtool.
func TestPeerImgtoolRealFirmware(t *testing.T) {
	t.Parallel()
	for i, f := range []struct{ pkg, path string }{
		{"hackrf-firmware", "usr/share/hackrf/hackrf_one_usb.bin"},
		{"crust-firmware", "usr/lib/crust-firmware/generic_a64.bin"},
		{"opensbi", "usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"},
		{"firmware-microbit-micropython", "usr/share/firmware-microbit-micropython/firmware.hex"},
	} {
		t.Run(f.pkg, func(t *testing.T) {
			t.Parallel()
			tool := newImgtool(t)
			src, err := os.ReadFile(peertest.DebPackage(t, f.pkg, f.path))
			if err != nil {
				t.Fatal(err)
			}
			signer, pub := imagetest.TestKey(t, keyTypes[i%len(keyTypes)], 24)
			tool.key(t, "key", signer)
			o := options(t, map[string]any{"header-size": 0x200, "pad-header": true, "version": "2.1.0", "security-counter": 3, "slot-size": 0x100000})
			if strings.HasSuffix(f.path, ".hex") {
				if _, err := mcuboot.New().Plan(t.Context(), image.Bytes(src), o, []image.PublicMaterial{pub}); err == nil || !strings.Contains(err.Error(), "Intel HEX") {
					t.Fatalf("an Intel HEX file was planned: %v", err)
				}
				src = flatten(t, src)
			}
			out, err := signWith(t.Context(), src, o, []crypto.Signer{signer}, []image.PublicMaterial{pub})
			if err != nil {
				t.Fatal(err)
			}
			tool.write(t, "fw.bin", out)
			if said := tool.must(t, "verify", "-k", "key.pub", "fw.bin"); !strings.Contains(said, "Image was correctly validated") || !strings.Contains(said, "Image version: 2.1.0+0") {
				t.Errorf("imgtool: %s", said)
			}
			if v := verify(t, out, image.Trust{Keys: []image.TrustedKey{{SPKI: pub.SPKI}}}, nil); v.Refusal() != nil {
				t.Error(v.Refusal())
			}
			r, err := mcuboot.New().Inspect(t.Context(), image.Bytes(out))
			if err != nil || len(r.Findings) != 0 || !r.Facts.Signed {
				t.Errorf("Inspect: %v, %+v", err, r)
			}
		})
	}
}

// flatten gives the first contiguous run of an Intel HEX file.
func flatten(t *testing.T, src []byte) []byte {
	t.Helper()
	var out []byte
	base, start := uint32(0), int64(-1)
	for line := range strings.Lines(string(src)) {
		b, err := hex.DecodeString(strings.Trim(line, ":\r\n"))
		if err != nil || len(b) < 5 {
			t.Fatalf("record %q: %v", line, err)
		}
		switch data := b[4 : len(b)-1]; b[3] {
		case 0:
			at := int64(base) + int64(binary.BigEndian.Uint16(b[1:]))
			if start < 0 {
				start = at
			}
			if gap := at - start - int64(len(out)); gap < 0 || gap > 1<<16 {
				return out
			} else {
				out = append(append(out, bytes.Repeat([]byte{0xff}, int(gap))...), data...)
			}
		case 4:
			base = uint32(binary.BigEndian.Uint16(data)) << 16
		case 2:
			base = uint32(binary.BigEndian.Uint16(data)) << 4
		}
	}
	return out
}
