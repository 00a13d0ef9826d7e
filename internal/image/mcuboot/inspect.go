package mcuboot

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// Inspect implements image.Format. It shows what could be read, with the
// byte range of every field, and names the traps that are well known; it
// checks no hash and no signature. Bytes without a header are a payload that
// was never signed, as a linker or a Zephyr build leaves it, or no image at
// all: nothing in them tells, so the report says both.
func (Format) Inspect(_ context.Context, src image.Source) (*image.Report, error) {
	b := make([]byte, 4)
	if err := readFull(src, b, 0, "the header"); err != nil {
		return nil, err
	}
	if m := le.Uint32(b); m != magic {
		return &image.Report{
			Format: formatName, Size: src.Size(),
			Tree: []image.Node{{Name: "payload", Value: fmt.Sprintf("%d bytes", src.Size()), Len: src.Size()}},
			Findings: []image.Finding{{
				Stage: image.StageContainer, Severity: image.Warn, Code: problem.ImageMalformed, What: "there is no MCUboot header",
				Range: &image.Range{Len: 4}, Expected: fmt.Sprintf("%#08x", uint32(magic)), Actual: fmt.Sprintf("%#08x", m),
				Cause: "a payload that was not signed yet, or no MCUboot image",
			}},
		}, nil
	}
	r := &image.Report{Format: formatName, Size: src.Size()}
	img, err := readShaped(src)
	if err != nil {
		p := problem.Of(err)
		if p.Code == problem.Internal { // reading failed: that is no property of the image
			return nil, err
		}
		r.Findings = append(r.Findings, image.Finding{
			Stage: image.StageContainer, Severity: image.Fatal, Code: p.Code, What: p.What, Actual: p.Why,
		})
	}
	if img == nil { // cut within the header
		r.Tree = append(r.Tree, image.Node{Name: "header", Value: "cut", Len: src.Size()})
		return r, nil
	}
	r.Facts.Version = img.Version.String()
	r.Tree = append(r.Tree, headerNode(img.header, src.Size()))
	if img.tlvOff() <= src.Size() && img.HdrSize >= headerLen {
		r.Tree = append(r.Tree, image.Node{Name: "payload", Value: fmt.Sprintf("%d bytes", img.ImgSize), Off: int64(img.HdrSize), Len: int64(img.ImgSize)})
		inspectPayload(r, src, img.header)
	}
	if img.Prot != nil {
		r.Tree = append(r.Tree, areaNode("protected TLVs", img.Prot))
	}
	if img.Plain != nil {
		r.Tree = append(r.Tree, areaNode("TLVs", img.Plain))
	}
	inspectTLVs(r, img)
	if err == nil {
		inspectTail(r, src, img)
	}
	return r, nil
}

func headerNode(h header, size int64) image.Node {
	f := func(name, value string, off, n int64) image.Node {
		return image.Node{Name: name, Value: value, Off: off, Len: n}
	}
	hex32 := func(v uint32) string { return fmt.Sprintf("%#x", v) }
	n := image.Node{Name: "header", Off: 0, Len: min(max(int64(h.HdrSize), headerLen), size), Children: []image.Node{
		f("ih_magic", hex32(h.Magic), offMagic, 4),
		f("ih_load_addr", hex32(h.LoadAddr), offLoadAddr, 4),
		f("ih_hdr_size", fmt.Sprintf("%#x", h.HdrSize), offHdrSize, 2),
		f("ih_protect_tlv_size", fmt.Sprintf("%#x", h.ProtSize), offProtSize, 2),
		f("ih_img_size", hex32(h.ImgSize), offImgSize, 4),
		f("ih_flags", hex32(h.Flags)+spaced(h.flagText()), offFlags, 4),
		f("ih_ver", fmt.Sprintf("%d.%d.%d+%d", h.Version.Major, h.Version.Minor, h.Version.Revision, h.Version.Build), offMajor, 8),
		f("pad", hex32(h.Pad), offPad, 4),
	}}
	if int64(h.HdrSize) > headerLen && int64(h.HdrSize) <= size {
		n.Children = append(n.Children, f("padding", "", headerLen, int64(h.HdrSize)-headerLen))
	}
	return n
}

func spaced(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}

func areaNode(name string, a *area) image.Node {
	n := image.Node{Name: name, Value: fmt.Sprintf("%d entries", len(a.TLVs)), Off: a.Off, Len: a.Total}
	for _, t := range a.TLVs {
		n.Children = append(n.Children, image.Node{
			Name: tlvName(t.Type), Value: tlvText(t), Off: t.Off, Len: tlvHeadLen + int64(len(t.Value)),
		})
	}
	return n
}

func tlvText(t tlv) string {
	v := t.Value
	switch {
	case t.Type == tlvSecCnt && len(v) == 4:
		return fmt.Sprint(le.Uint32(v))
	case (t.Type == tlvDecompSize || t.Type == tlvCompDec) && len(v) == 4:
		return fmt.Sprintf("%d bytes", le.Uint32(v))
	case t.Type == tlvDependency && len(v) == 12:
		return fmt.Sprintf("image %d at %s or later", v[0], version{v[4], v[5], le.Uint16(v[6:]), le.Uint32(v[8:])})
	}
	return hexShort(v)
}

// signatureAlg guesses the scheme of a signature TLV: ECDSA's curve is not in
// the image but follows from the hash beside it.
func signatureAlg(typ uint16, img *shaped) (alg.ID, bool) {
	switch typ {
	case tlvECDSA:
		for _, t := range img.Plain.TLVs {
			if t.Type == tlvSHA384 {
				return alg.ECDSAP384SHA384, true
			}
		}
		return alg.ECDSAP256SHA256, true
	case tlvRSA2048, tlvRSA3072, tlvEd25519:
		for _, s := range schemes {
			if s.SigTLV == typ {
				return s.Alg, true
			}
		}
	}
	return "", false
}

func inspectTLVs(r *image.Report, img *shaped) {
	note := func(t tlv, sev image.Severity, code problem.Code, what, cause, next string) {
		r.Findings = append(r.Findings, image.Finding{
			Stage: image.StageCoverage, Severity: sev, Code: code, What: what, Cause: cause, Next: next,
			Range: &image.Range{Off: t.Off, Len: tlvHeadLen + int64(len(t.Value))},
		})
	}
	if img.Prot != nil {
		for _, t := range img.Prot.TLVs {
			if t.Type == tlvSecCnt && len(t.Value) == 4 && r.Facts.SecurityCounter == nil {
				c := uint64(le.Uint32(t.Value))
				r.Facts.SecurityCounter = &c
			}
		}
	}
	if img.Plain == nil {
		return
	}
	hint, keyID := "", ""
	pure := false
	for _, t := range img.Plain.TLVs {
		if t.Type == tlvSigPure {
			pure = true
		}
		if id, ok := signatureAlg(t.Type, img); ok {
			slot := "image"
			if n := len(r.Signatures); n > 0 {
				slot = fmt.Sprintf("image-%d", n+1)
			}
			r.Signatures = append(r.Signatures, image.SignatureInfo{
				Slot: slot, Alg: id, KeyHint: hint, KeyID: keyID,
				Range: &image.Range{Off: t.Off + tlvHeadLen, Len: int64(len(t.Value))},
			})
			r.Facts.Signed = true
			if name := cmpOr(keyID, hint); name != "" {
				r.Facts.SignedWith = append(r.Facts.SignedWith, name)
			}
			hint, keyID = "", ""
			continue
		}
		switch t.Type {
		case tlvKeyHash:
			hint = hex.EncodeToString(t.Value)
		case tlvPubKey:
			hint, keyID = "public key in the image", pubKeyID(t.Value)
		case tlvSecCnt, tlvDependency, tlvBootRecord, tlvVendorUUID, tlvClassUUID:
			note(t, image.Warn, problem.SigCoverage, tlvName(t.Type)+" is outside the protected area",
				"the hash does not cover it: anybody can change it", "sign with a current imgtool or with Firmseal")
		case tlvECDSA224:
			note(t, image.Warn, problem.AlgWeak, "a signature by a P-224 key", "MCUboot does not support it any more", "sign with p256")
		case tlvSHA256, tlvSHA384, tlvSHA512, tlvSigPure, tlvEncRSA, tlvEncKW, tlvEncEC256, tlvEncX25519, tlvEncX512:
		default:
			what := "the unprotected TLV " + tlvName(t.Type) + " is none that belongs there"
			if low := t.Type & 0xff; t.Type > 0xff && tlvNames[low] != "" {
				what = fmt.Sprintf("the device reads TLV type %#04x, imgtool reads %s", t.Type, tlvNames[low])
			}
			note(t, image.Warn, problem.SigCoverage, what,
				"the hash does not cover it, and a bootloader with MCUBOOT_USE_TLV_ALLOW_LIST refuses the image", "put it among the protected TLVs")
		}
	}
	if pure {
		r.Findings = append(r.Findings, image.Finding{
			Stage: image.StageTarget, Severity: image.Warn, Code: problem.TargetCapability,
			What:  "the signature is over the whole image, not its hash (SIG_PURE)",
			Cause: "a bootloader built without MCUBOOT_SIGN_PURE refuses it", Next: "sign without --pure, or build the bootloader with it",
		})
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// pubKeyID gives the key id of a PUBKEY TLV where it is a SubjectPublicKeyInfo.
func pubKeyID(b []byte) string {
	if _, _, err := alg.ParseSPKI(b); err != nil {
		return ""
	}
	return alg.KeyID(b)
}

func inspectPayload(r *image.Report, src image.Source, h header) {
	add := func(code problem.Code, what, cause, next string) {
		r.Findings = append(r.Findings, image.Finding{
			Stage: image.StageContainer, Severity: image.Warn, Code: code, What: what, Cause: cause, Next: next,
			Range: &image.Range{Off: int64(h.HdrSize), Len: min(int64(h.ImgSize), 64)},
		})
	}
	b := make([]byte, min(int64(h.ImgSize), 64))
	if readFull(src, b, int64(h.HdrSize), "the payload") != nil {
		return // its absence is reported already
	}
	switch {
	case len(b) >= 4 && le.Uint32(b) == magic:
		add(problem.ImageAlreadySigned, "there is a second MCUboot header where the payload begins",
			"the image was signed twice: the bootloader jumps into the inner header", "sign the build's raw binary once")
	case h.Flags&(flagsEncrypted|flagNonBootable) != 0:
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		add(problem.ImageMalformed, "the payload is an ELF file", "the bootloader starts it at its first byte", "objcopy -O binary FILE.elf FILE.bin")
	case intelHex.Match(b):
		add(problem.ImageMalformed, "the payload is an Intel HEX file", "the bootloader starts it at its first byte", "objcopy -I ihex -O binary FILE.hex FILE.bin")
	}
}

// inspectTail shows what follows the TLVs: nothing, or the rest of the slot.
func inspectTail(r *image.Report, src image.Source, img *shaped) {
	end, size := img.end(), src.Size()
	if end >= size {
		return
	}
	node := image.Node{Name: "after the image", Value: fmt.Sprintf("%d bytes", size-end), Off: end, Len: size - end}
	tail := make([]byte, min(size-end, 16))
	if readFull(src, tail, size-int64(len(tail)), "the trailer") != nil {
		return
	}
	maxAlign := int64(0)
	switch {
	case bytes.Equal(tail, bootMagic[:]):
		maxAlign = 8
	case len(tail) == 16 && bytes.Equal(tail[2:], bootMagicTail[:]):
		maxAlign = int64(le.Uint16(tail))
	}
	if maxAlign < 8 || maxAlign > 32 || maxAlign*4+32 > size-end {
		r.Findings = append(r.Findings, image.Finding{
			Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage,
			What: "there are bytes after the image that are no slot trailer", Range: &image.Range{Off: end, Len: size - end},
			Cause: "no signature covers them; the bootloader does not run them either", Next: "upload the signed image alone",
		})
		r.Tree = append(r.Tree, node)
		return
	}
	node.Name = "slot trailer"
	off := size - (16+maxAlign-1)/maxAlign*maxAlign
	node.Children = []image.Node{{Name: "boot magic", Value: hex.EncodeToString(tail), Off: size - 16, Len: 16}}
	for _, name := range []string{"image_ok", "copy_done", "swap_info"} {
		off -= maxAlign
		b := make([]byte, 1)
		if readFull(src, b, off, "the trailer") != nil {
			return
		}
		value := fmt.Sprintf("%#02x", b[0])
		if name != "swap_info" {
			value = map[byte]string{1: "set", 0xff: "unset", 0: "unset"}[b[0]] + " (" + value + ")"
		}
		node.Children = append(node.Children, image.Node{Name: name, Value: value, Off: off, Len: 1})
	}
	r.Tree = append(r.Tree, node)
}
