package mcuboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// The device's own words. Most refusals end in the first two, whatever the cause.
const (
	saysInvalid = "Image in the primary slot is not valid!"
	saysNothing = "Unable to find bootable image"
)

// How the last 16 bytes of a slot end: the whole magic for a write size of 8,
// all but its first two bytes for larger ones.
const (
	trailerMagic     = "\x77\xc2\x95\xf3\x60\xd2\xef\x7f\x35\x52\x50\x0f\x2c\xb6\x79\x80"
	trailerMagicTail = "\x2d\xe1\x5d\x29\x41\x0b\x8d\x77\x67\x9c\x11\x0f\x1f\x8a"
)

// judge is one verification in progress.
type judge struct {
	tg   *target
	size int64 // of the file
	v    *image.Verdict
	s    *seen
	h    digests // of the device's region

	// outside: the device took a value that no signature covers.
	outside bool
}

// Verify implements image.Format: it decides as bootutil_img_validate of a
// bootloader that was built as the profile's options say (see profileOptions).
//
// Valid means that a hash in the image is right and that some trusted key's
// signature over it is, of whatever type; Accepted that this bootloader would
// boot it. What imgtool would say of the same bytes is a finding of its own.
func (Format) Verify(ctx context.Context, src image.Source, t image.Trust, p image.Profile) (*image.Verdict, error) {
	tg, err := newTarget(t, p)
	if err != nil {
		return nil, err
	}
	j := &judge{tg: tg, size: src.Size(), v: &image.Verdict{Format: formatName, Profile: p}}
	accepted, err := j.device(ctx, src)
	if err != nil {
		return nil, err
	}
	j.v.Accepted = accepted
	if j.s != nil && j.h != nil {
		j.valid()
	}
	if err := j.imgtool(ctx, src); err != nil {
		return nil, err
	}
	return j.v, nil
}

// add keeps a finding's range within the file: a length that lies points
// beyond it, and then the place to look at is where the file ends.
func (j *judge) add(f image.Finding) {
	if r := f.Range; r != nil {
		off := min(r.Off, j.size)
		f.Range = &image.Range{Off: off, Len: min(r.Len, j.size-off)}
	}
	j.v.Findings = append(j.v.Findings, f)
}

func (j *judge) ok(stage image.Stage, r *image.Range, format string, a ...any) {
	j.add(image.Finding{Stage: stage, Severity: image.OK, What: fmt.Sprintf(format, a...), Range: r})
}

// refuse adds a fatal finding with the device's last words after its own.
func (j *judge) refuse(f image.Finding, own ...string) {
	f.Severity = image.Fatal
	f.Device = append(own, saysInvalid, saysNothing)
	j.add(f)
}

// device is the bootloader: boot_check_header_valid, then bootutil_img_validate.
func (j *judge) device(ctx context.Context, src image.Source) (bool, error) {
	s, err := readHeader(src)
	if errors.Is(err, errShort) {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageTruncated, What: "the image is shorter than a header",
			Range: &image.Range{Len: src.Size()}, Expected: fmt.Sprintf("at least %d bytes", headerLen), Actual: fmt.Sprintf("%d bytes", src.Size()), Next: "upload the whole image",
		})
		return false, nil
	} else if err != nil {
		return false, err
	}
	j.s = s
	if !j.header(src) {
		return false, nil
	}
	fits := j.fits()
	fault, err := s.findAreas(src)
	if err != nil {
		return false, err
	}
	if fault != nil {
		f := image.Finding{
			Stage: image.StageContainer, Code: problem.ImageMalformed, What: fault.what, Range: &image.Range{Off: fault.off, Len: 2},
			Expected: fault.expected, Actual: fault.actual,
			Cause: "the image is not signed, its sizes were changed, or it was built with another header size",
			Next:  "sign the build's binary, and compare header-size with CONFIG_ROM_START_OFFSET",
		}
		if fault.short {
			f.Code, f.Cause, f.Next = problem.ImageTruncated, "the file was cut, or a length in the header lies", "transfer the image again"
		}
		j.refuse(f)
		return false, nil
	}
	err = s.walk(src)
	if errors.Is(err, errShort) {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageTruncated, What: "the image ends within its TLVs",
			Range:    &image.Range{Off: s.plainOff, Len: s.end - s.plainOff},
			Expected: fmt.Sprintf("%d bytes", s.end), Actual: fmt.Sprintf("%d bytes", s.size), Cause: "the file was cut, or a length lies", Next: "transfer the image again",
		})
		return false, nil
	} else if err != nil {
		return false, err
	}
	j.ok(image.StageContainer, &image.Range{Off: 0, Len: s.end}, "header and TLV areas hold together")
	if ok, err := j.tail(src); !ok || err != nil {
		return false, err
	}

	if j.h, err = hashRegion(ctx, src, s.hashEnd(), j.wanted()); err != nil {
		if errors.Is(err, errShort) { // the file shrank while it was read
			return false, problem.New(problem.Conflict, "the image changed while it was verified").Because(err)
		}
		return false, err
	}
	return j.validate() && fits, nil
}

// tail looks at what follows the TLVs, which the device does not read as part
// of the image.
func (j *judge) tail(src image.Source) (bool, error) {
	s := j.s
	n := s.size - s.end
	if n == 0 {
		return true, nil
	}
	b, err := readAt(src, s.size-min(n, 16), int(min(n, 16)))
	if errors.Is(err, errShort) {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageTruncated, What: "the image ends before the size that was announced",
			Range: &image.Range{Off: s.end, Len: n}, Expected: fmt.Sprintf("%d bytes", s.size), Actual: "fewer", Cause: "the file was cut", Next: "transfer the image again",
		})
		return false, nil
	} else if err != nil {
		return false, err
	}
	if n >= 64 && (string(b) == trailerMagic || string(b[2:]) == trailerMagicTail) {
		j.ok(image.StageContainer, &image.Range{Off: s.end, Len: n}, "the rest of the slot ends with the boot magic")
		return true, nil
	}
	j.add(image.Finding{
		Stage: image.StageCoverage, Severity: image.Warn, Code: problem.SigCoverage, What: "there are bytes after the image that are no slot trailer",
		Range: &image.Range{Off: s.end, Len: n}, Actual: fmt.Sprintf("%d bytes", n), Cause: "no signature covers them; the device does not run them", Next: "upload the signed image alone",
	})
	return true, nil
}

// wanted are the hashes that the build, the trusted keys and imgtool compute.
func (j *judge) wanted() map[uint16]bool {
	want := map[uint16]bool{j.tg.hash: true}
	for _, e := range j.s.entries {
		if t := e.typ & 0xff; !e.protected && hashLen(t) > 0 {
			want[t] = true
		}
	}
	for _, a := range j.tg.all {
		if a.known {
			want[a.scheme.HashTLV] = true
		}
	}
	return want
}

// header is boot_check_header_valid, up to the sizes that the target decides.
func (j *judge) header(src image.Source) bool {
	s := j.s
	if s.magic != magic {
		f := image.Finding{
			Stage: image.StageContainer, Code: problem.ImageMalformed, What: "the image has no MCUboot header",
			Range: &image.Range{Off: 0, Len: 4}, Expected: fmt.Sprintf("%#08x", uint32(magic)), Actual: fmt.Sprintf("%#08x", s.magic),
			Cause: "these are other bytes than a signed image", Next: "sign the image, and upload the signed file",
		}
		switch s.magic {
		case magicNone:
			f.Cause = "this is erased flash, or a file filled with 0xff"
		case 0:
			f.Cause = "the build leaves room for a header, and was not signed"
		case magicV1:
			f.Cause, f.Next = "this is the header of MCUboot before 1.0", "sign with a current tool"
		case 0x464c457f:
			f.Cause, f.Next = "this is an ELF file", "sign the .bin of the build"
		}
		if s.magic&0xff == ':' {
			f.Cause, f.Next = "this may be an Intel HEX file", "upload the .bin of the build"
		}
		j.refuse(f, fmt.Sprintf("Bad image magic 0x%x", s.magic))
		return false
	}
	if s.hdrSize < headerLen {
		j.add(image.Finding{
			Stage: image.StageContainer, Severity: image.Warn, Code: problem.ImageMalformed, What: "the header says that it is shorter than its fields",
			Range: &image.Range{Off: 8, Len: 2}, Expected: fmt.Sprintf("at least %d", headerLen), Actual: fmt.Sprint(s.hdrSize), Cause: "the device does not look at this", Next: "build the image again",
		})
	}
	if s.hashEnd() > maxSize {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageMalformed, What: "the sizes in the header do not add up in 32 bits",
			Range: &image.Range{Off: 8, Len: 8}, Actual: fmt.Sprint(s.hashEnd()), Expected: fmt.Sprintf("at most %d", uint32(maxSize)), Cause: "a length lies", Next: "build the image again",
		})
		return false
	}
	if s.flags&flagsEncrypted != 0 || s.flags&flagsCompressed != 0 {
		kind, option := "encrypted", "MCUBOOT_ENC_IMAGES"
		if s.flags&flagsEncrypted == 0 {
			kind, option = "compressed", "MCUBOOT_DECOMPRESS_IMAGES"
		}
		j.refuse(image.Finding{
			Stage: image.StageTarget, Code: problem.TargetCapability, What: "the image is " + kind,
			Range: &image.Range{Off: 16, Len: 4}, Expected: "a plain image", Actual: fmt.Sprintf("flags %#x", s.flags),
			Cause: "a bootloader without " + option + " refuses it, and its signature is over bytes that are not here", Next: "verify the plain image",
		})
		return false
	}
	if b, err := readAt(src, int64(s.hdrSize), 4); err == nil && s.imgSize >= 4 && u32(b) == magic {
		j.add(image.Finding{
			Stage: image.StageContainer, Severity: image.Warn, Code: problem.ImageAlreadySigned, What: "there is a second MCUboot header where the payload begins",
			Range: &image.Range{Off: int64(s.hdrSize), Len: headerLen}, Cause: "the image was signed twice: the device accepts it and jumps into the inner header", Next: "sign the build's raw binary once",
		})
	}
	return true
}

// fits checks what depends on this target and leaves the bytes readable: the
// signature is judged even where the device has stopped here.
func (j *judge) fits() bool {
	s := j.s
	fits := true
	if j.tg.slotSize > 0 && uint64(s.hashEnd()) >= j.tg.slotSize {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageNoRoom, What: "the image does not fit the target's slot",
			Range: &image.Range{Off: 12, Len: 4}, Expected: fmt.Sprintf("less than %d bytes", j.tg.slotSize), Actual: fmt.Sprintf("%d bytes", s.hashEnd()), Cause: "the image grew, or it is for another board", Next: "make the image smaller, or the slot larger",
		},
			fmt.Sprintf("Image size bigger than designated area: %d > %d", s.hashEnd(), j.tg.slotSize))
		fits = false
	}
	if s.flags&flagNonBootable != 0 && !j.tg.nonBootable {
		j.refuse(image.Finding{
			Stage: image.StageTarget, Code: problem.TargetCapability, What: "the image is marked as not bootable",
			Range: &image.Range{Off: 16, Len: 4}, Expected: "a bootable image", Actual: fmt.Sprintf("flags %#x", s.flags),
			Cause: "it belongs to another image; the device does not start it", Next: "leave non-bootable out of the signing options, or set non-bootable for this target",
		},
			"Image not bootable")
		fits = false
	}
	if j.tg.slotAddr != 0 && s.flags&flagROMFixed != 0 && uint64(s.loadAddr) != j.tg.slotAddr {
		j.refuse(image.Finding{
			Stage: image.StageTarget, Code: problem.TargetCapability, What: "the image is built for another flash address",
			Range: &image.Range{Off: 4, Len: 4}, Expected: fmt.Sprintf("%#x", j.tg.slotAddr), Actual: fmt.Sprintf("%#x", s.loadAddr), Cause: "it is the build for the other slot", Next: "sign the build for this slot",
		},
			fmt.Sprintf("Image in primary slot at 0x%x has been built for offset 0x%x", j.tg.slotAddr, s.loadAddr))
		fits = false
	}
	return fits
}

// unprotectedAllowed is allowed_unprot_tlvs of image_validate.c, without SIG_PURE.
func unprotectedAllowed(t uint16) bool {
	switch t {
	case tlvKeyHash, tlvPubKey, tlvSHA256, tlvSHA384, tlvSHA512, tlvRSA2048, tlvECDSA224, tlvECDSA, tlvRSA3072, tlvEd25519,
		tlvEncRSA, tlvEncKW, tlvEncEC256, tlvEncX25519:
		return true
	}
	return false
}

// validate is the loop over the TLVs in bootutil_img_validate. It goes on
// where the device goes on, so that the last matching signature decides.
func (j *judge) validate() bool {
	s, tg := j.s, j.tg
	if tg.maxSize > 0 && uint64(s.end) > tg.maxSize {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageNoRoom, What: "the image leaves no room for the slot's trailer",
			Range: &image.Range{Off: s.plainOff, Len: s.end - s.plainOff}, Expected: fmt.Sprintf("at most %d bytes", tg.maxSize), Actual: fmt.Sprintf("%d bytes", s.end),
			Cause: "the bootloader keeps its swap state at the end of the slot", Next: "make the image smaller, or the slot larger",
		},
			"bootutil_img_validate: TLV beyond image size")
		return false
	}
	if !tg.none && len(tg.anchors) == 0 {
		j.refuse(image.Finding{
			Stage: image.StageKeyID, Code: problem.TrustAnchorMissing, What: "the target has no key that could have signed the image",
			Range:    &image.Range{Off: s.plainOff, Len: s.end - s.plainOff},
			Expected: "a " + tg.scheme.Name + " key", Actual: fmt.Sprintf("%d keys of other types", len(tg.all)), Cause: "the bootloader has no key, or keys of another type than it is built for", Next: "put the key's C array into the bootloader",
		})
		return false
	}
	key := -1
	var hashRight, signed, counted bool
	var keyEntry, pure *entry
	sigs, others := 0, []string(nil)
	unknownKeys := []string(nil)
	for i := range s.entries {
		e := &s.entries[i]
		if tg.allowList && !e.protected && !unprotectedAllowed(e.typ) {
			j.refuse(image.Finding{
				Stage: image.StageCoverage, Code: problem.SigCoverage, What: fmt.Sprintf("the unprotected TLV %#04x is not on the bootloader's list", e.typ),
				Range: e.span(), Expected: "hash, key, signature and encryption TLVs only", Actual: typeText(e.typ),
				Cause: "no signature covers it; MCUBOOT_USE_TLV_ALLOW_LIST refuses it", Next: "put it among the protected TLVs, or set allow-list: false if the bootloader has no list",
			},
				fmt.Sprintf("bootutil_img_validate: TLV %d not permitted", e.typ))
			return false
		}
		if e.typ == tlvSigPure {
			pure = e
		}
		switch {
		case e.typ == tg.hash:
			if !j.hashEntry(e) {
				return false
			}
			hashRight = true
		case !tg.none && e.typ == tg.keyTLV():
			if len(e.val) > tg.keyBuffer() {
				j.refuse(image.Finding{
					Stage: image.StageKeyID, Code: problem.ImageMalformed, What: "the key TLV is too long for this bootloader",
					Range: e.span(), Expected: fmt.Sprintf("at most %d bytes", tg.keyBuffer()), Actual: fmt.Sprintf("%d bytes", len(e.val)), Cause: "the image was signed for another type of signature", Next: "sign with a " + tg.scheme.Name + " key",
				})
				return false
			}
			key, keyEntry = tg.findKey(e.val), e
			if key < 0 || key >= len(tg.anchors) {
				unknownKeys = append(unknownKeys, short(e.val))
			}
		case !tg.none && e.typ == tg.scheme.SigTLV:
			sigs++
			if key < 0 || key >= len(tg.anchors) {
				j.info(e, keyEntry, "", nil)
				key, keyEntry = -1, nil
				continue
			}
			done := false
			signed, done = j.signature(e, keyEntry, key)
			if done {
				return false
			}
			key, keyEntry = -1, nil
		case e.typ == tlvSecCnt && tg.rollback:
			if !j.counter(e) {
				return false
			}
			counted = true
		case !e.protected && isSignature(e.typ):
			others = append(others, typeText(e.typ))
			j.info(e, nil, "", nil)
		}
	}
	if bad := s.badEntry; bad != nil {
		j.refuse(image.Finding{
			Stage: image.StageContainer, Code: problem.ImageMalformed, What: "a TLV reaches over the end of its area",
			Range: &image.Range{Off: bad.off, Len: tlvHeadLen}, Actual: fmt.Sprintf("%d bytes", bad.says), Expected: "a length within the area", Cause: "a length lies", Next: "transfer the image again, or sign it again",
		})
		return false
	}
	if !hashRight {
		j.refuse(image.Finding{
			Stage: image.StageIntegrity, Code: problem.ImageMalformed, What: "the image has no hash that this bootloader looks at",
			Range: &image.Range{Off: s.plainOff, Len: s.end - s.plainOff}, Expected: "a TLV " + typeText(tg.hash), Actual: j.typesSeen(),
			Cause: hashCause(pure), Next: "sign with a " + tg.scheme.Name + " key",
		})
		return false
	}
	if tg.none {
		j.add(image.Finding{
			Stage: image.StageSignature, Severity: image.Fatal, Code: problem.TrustNotEnforced, What: "the bootloader is built without a signature type",
			Range: &image.Range{Len: s.end},
			Cause: "it checks the hash, which anybody can compute, and boots", Next: "build MCUboot with a signature type and a key of your own",
		})
		return true
	}
	if signed {
		// An earlier signature that does not verify is no refusal: the last one decides.
		for i := range j.v.Findings {
			if f := &j.v.Findings[i]; f.Stage == image.StageSignature && f.Severity == image.Fatal {
				f.Severity, f.Device = image.Warn, nil
			}
		}
	} else {
		j.unsigned(sigs, unknownKeys, others)
		return false
	}
	if tg.rollback && !counted {
		j.refuse(image.Finding{
			Stage: image.StagePolicy, Code: problem.RollbackCounterMissing, What: "the image has no security counter",
			Range:    &image.Range{Off: s.protOff, Len: s.end - s.protOff},
			Expected: fmt.Sprintf("a protected TLV SEC_CNT of at least %d", tg.stored), Actual: j.typesSeen(), Cause: "it was signed without security-counter", Next: "sign with security-counter, or auto",
		})
		return false
	}
	return true
}

func hashCause(pure *entry) string {
	if pure != nil {
		return "the signature is over the whole image (SIG_PURE), which needs MCUBOOT_SIGN_PURE"
	}
	return "the image was signed for another type of signature, or a TLV was changed"
}

func (j *judge) hashEntry(e *entry) bool {
	want := j.h[e.typ]
	if len(e.val) == len(want) && bytes.Equal(e.val, want) {
		j.ok(image.StageIntegrity, e.span(), "the hash is that of header, payload and protected TLVs")
		return true
	}
	f := image.Finding{
		Stage: image.StageIntegrity, Code: firmseal.CodeImageMismatch, What: "the hash in the image is not that of its bytes",
		Range: &image.Range{Off: 0, Len: j.s.hashEnd()}, Expected: fmt.Sprintf("%x", e.val), Actual: fmt.Sprintf("%x", want),
		Cause: "header, payload or protected TLVs were changed after signing, or the transfer damaged them", Next: "transfer the image again, or sign it again",
	}
	if len(e.val) != len(want) {
		f.Code, f.Range, f.What = problem.ImageMalformed, e.span(), "the hash TLV has a wrong length"
		f.Expected, f.Actual = fmt.Sprintf("%d bytes", len(want)), fmt.Sprintf("%d bytes", len(e.val))
	}
	j.refuse(f)
	return false
}

// signature checks one signature with the key that its key TLV named. The
// second result ends the validation as the device's goto out does.
func (j *judge) signature(e, keyEntry *entry, key int) (right, end bool) {
	tg := j.tg
	a := tg.anchors[key]
	n := len(e.val)
	if n > tg.sigBuffer() || tg.scheme.SigTLV != tlvECDSA && n != tg.scheme.MaxSig || tg.oldECDSA && tg.scheme.SigTLV == tlvECDSA && n < 72 {
		f := image.Finding{
			Stage: image.StageSignature, Code: problem.SigEncoding, What: "the signature has a length that this bootloader refuses",
			Range: e.span(), Expected: fmt.Sprintf("%d bytes", tg.scheme.MaxSig), Actual: fmt.Sprintf("%d bytes", n), Cause: "it is of another key size, or was cut", Next: "sign the image again",
		}
		if tg.oldECDSA {
			f.Expected, f.Cause, f.Next = "at least 72 bytes", "MCUboot before 1.5 wants the signature padded", "sign with pad-sig"
		}
		j.refuse(f)
		return false, true
	}
	err := verifySignature(a, j.h[tg.hash], e.val)
	j.info(e, keyEntry, a.id, err)
	if err != nil {
		j.add(image.Finding{
			Stage: image.StageSignature, Severity: image.Fatal, Code: problem.Of(err).Code, What: "the signature is not by the key that the image names",
			Range: e.span(), Expected: fmt.Sprintf("a %s signature by %s over %x", tg.scheme.Name, a.label(), j.h[tg.hash]), Actual: short(e.val),
			Device: append(deviceWords(tg.scheme.Key), saysInvalid, saysNothing),
			Cause:  signatureCause(tg.scheme.Key), Next: "sign the image again with the key " + a.label(),
		})
		return false, false
	}
	j.ok(image.StageSignature, e.span(), "signed by %s with %s", a.label(), tg.scheme.Name)
	if tg.scheme.SigTLV == tlvECDSA && n > 0 && e.val[n-1] == 0 && int(e.val[1])+2 == n {
		j.add(image.Finding{
			Stage: image.StageTarget, Severity: image.Warn, Code: problem.TargetCapability, What: "the signature ends in a zero byte",
			Range: e.span(), Cause: "builds with CY_MBEDTLS_HW_ACCELERATION cut zeros off as padding and then refuse it", Next: "for such a target, sign the image again",
		})
	}
	return true, false
}

func deviceWords(k alg.KeyType) []string {
	if k == alg.Ed25519 {
		return []string{"ED25519 signature verification failed -149"} // of PSA builds: PSA_ERROR_INVALID_SIGNATURE
	}
	return nil
}

func signatureCause(k alg.KeyType) string {
	switch k {
	case alg.RSA2048, alg.RSA3072:
		return "another key signed and the key hash was taken over, or the PSS salt is not 32 bytes"
	case alg.Ed25519:
		return "another key signed and the key hash was taken over, or the signer used Ed25519ph or signed the image instead of its hash"
	}
	return "another key signed and the key hash was taken over, or the signature was changed"
}

// verifySignature checks a signature in MCUboot's encoding over an image hash.
func verifySignature(a anchor, digest, sig []byte) error {
	if a.scheme.SigTLV == tlvECDSA {
		if len(sig) < 2 || int(sig[1])+2 > len(sig) {
			return problem.New(problem.SigEncoding, "the signature is not DER")
		}
		for _, c := range sig[int(sig[1])+2:] {
			if c != 0 {
				return problem.New(problem.SigEncoding, "there are bytes behind the DER signature")
			}
		}
		sig = sig[:int(sig[1])+2]
	}
	return alg.Verify(a.scheme.Alg, a.pub, digest, sig)
}

// counter is the case of IMAGE_TLV_SEC_CNT.
func (j *judge) counter(e *entry) bool {
	if len(e.val) != 4 {
		j.refuse(image.Finding{
			Stage: image.StagePolicy, Code: problem.ImageMalformed, What: "the security counter has a wrong length",
			Range: e.span(), Expected: "4 bytes", Actual: fmt.Sprintf("%d bytes", len(e.val)), Cause: "another tool wrote it", Next: "sign the image again",
		})
		return false
	}
	c := u32(e.val)
	if !e.protected {
		// The device does not ask in which area it found the counter.
		j.outside = true
		j.add(image.Finding{
			Stage: image.StageCoverage, Severity: image.Fatal, Code: problem.SigCoverage, What: "the security counter is outside the signature",
			Range: e.span(), Actual: "in the unprotected area", Expected: "in the protected area",
			Cause: "a bootloader without an allow-list takes it from there: anybody can raise it", Next: "sign with security-counter, and build MCUboot with MCUBOOT_USE_TLV_ALLOW_LIST",
		})
	}
	if uint64(c) < j.tg.stored {
		j.refuse(image.Finding{
			Stage: image.StagePolicy, Code: firmseal.CodeRollback, What: "the image's security counter is below the target's",
			Range: e.span(), Expected: fmt.Sprintf("at least %d", j.tg.stored), Actual: fmt.Sprint(c), Cause: "the target has run a release with a higher counter", Next: "release with a security counter of at least " + fmt.Sprint(j.tg.stored),
		},
			fmt.Sprintf("Image security counter value %d lower than monotonic value %d", c, j.tg.stored))
		return false
	}
	j.ok(image.StagePolicy, e.span(), "the security counter %d is not below the target's %d", c, j.tg.stored)
	return true
}

// unsigned says why no signature counted, which the device never does.
func (j *judge) unsigned(sigs int, unknownKeys, others []string) {
	for _, f := range j.v.Findings {
		if f.Severity == image.Fatal && f.Stage == image.StageSignature {
			return // said already
		}
	}
	tg := j.tg
	f := image.Finding{Range: &image.Range{Off: j.s.plainOff, Len: j.s.end - j.s.plainOff}}
	var trusted []string
	for _, a := range tg.anchors {
		trusted = append(trusted, short(a.keyHash(tg.hash)))
	}
	switch {
	case sigs > 0 && len(unknownKeys) > 0:
		f.Stage, f.Code, f.What = image.StageKeyID, problem.TrustAnchorMissing, "the image is signed by a key that the target does not have"
		f.Expected, f.Actual = strings.Join(trusted, " or "), strings.Join(unknownKeys, ", ")
		f.Cause = "the key in the bootloader is not the one that signed; the value is the key's hash"
		f.Next = "sign with the key that the bootloader was built with, or compare with the exported key hash"
	case sigs > 0:
		f.Stage, f.Code, f.What = image.StageKeyID, problem.SigMissing, "the signature has no key TLV before it"
		f.Expected, f.Actual = "a TLV "+typeText(tg.keyTLV()), j.typesSeen()
		f.Cause = "the bootloader skips a signature whose key it was not told"
		f.Next = "sign with public-key-format " + map[uint16]string{tlvKeyHash: "hash", tlvPubKey: "full"}[tg.keyTLV()]
	case len(others) > 0:
		f.Stage, f.Code, f.What = image.StageSignature, problem.TargetCapability, "the image is signed with a type that this bootloader is not built for"
		f.Expected, f.Actual = typeText(tg.scheme.SigTLV), strings.Join(others, ", ")
		f.Cause = "MCUboot is compiled for one type and ignores all others"
		f.Next = "sign with a " + tg.scheme.Name + " key, or check the signature type of the bootloader's build"
	default:
		f.Stage, f.Code, f.What = image.StageSignature, problem.SigMissing, "the image is not signed"
		f.Expected, f.Actual = "a TLV "+typeText(tg.scheme.SigTLV), j.typesSeen()
		f.Cause, f.Next = "it was made without a key", "sign the image"
	}
	j.refuse(f)
}

func (j *judge) typesSeen() string {
	if len(j.s.entries) == 0 {
		return "no TLVs"
	}
	var names []string
	for i, e := range j.s.entries {
		if i == 16 {
			names = append(names, "…")
			break
		}
		names = append(names, typeText(e.typ))
	}
	return strings.Join(names, ", ")
}

// typeText names the types that findings are about.
func typeText(t uint16) string {
	switch t {
	case tlvKeyHash:
		return "KEYHASH"
	case tlvPubKey:
		return "PUBKEY"
	case tlvSHA256:
		return "SHA256"
	case tlvSHA384:
		return "SHA384"
	case tlvSHA512:
		return "SHA512"
	case tlvRSA2048:
		return "RSA2048"
	case tlvRSA3072:
		return "RSA3072"
	case tlvECDSA:
		return "ECDSASIG"
	case tlvEd25519:
		return "ED25519"
	case tlvSigPure:
		return "SIG_PURE"
	case tlvSecCnt:
		return "SEC_CNT"
	}
	return fmt.Sprintf("%#04x", t)
}

func short(b []byte) string {
	if len(b) > 16 {
		return fmt.Sprintf("%x…", b[:16])
	}
	return fmt.Sprintf("%x", b)
}

func (a anchor) label() string {
	if a.name != "" {
		return a.name
	}
	return a.id[:16]
}

func isSignature(t uint16) bool {
	switch t {
	case tlvRSA2048, tlvRSA3072, tlvECDSA224, tlvECDSA, tlvEd25519:
		return true
	}
	return false
}

// info lists a signature. A nil error with a key id means that it verified; no
// key id, that it was not checked.
func (j *judge) info(e, keyEntry *entry, keyID string, err error) {
	slot := "image"
	if n := len(j.v.Signatures); n > 0 {
		slot = fmt.Sprintf("image-%d", n+1)
	}
	si := image.SignatureInfo{Slot: slot, KeyID: keyID, Range: &image.Range{Off: e.off + tlvHeadLen, Len: int64(len(e.val))}}
	for _, s := range builds() {
		if s.SigTLV == e.typ && (s.SigTLV != tlvECDSA || s.Name == j.tg.scheme.Name) {
			si.Alg = s.Alg
		}
	}
	if keyEntry != nil && keyEntry.typ == tlvKeyHash {
		si.KeyHint = fmt.Sprintf("%x", keyEntry.val)
	}
	if keyID != "" {
		right := err == nil
		si.Valid = &right
	}
	j.v.Signatures = append(j.v.Signatures, si)
}

// valid fills the column that does not depend on the build: some trusted key
// made a signature over its scheme's hash of these bytes, and that hash is in
// the image.
func (j *judge) valid() {
	if j.outside {
		return // a device that takes a value from outside the signature is not verifying
	}
	right := map[uint16]bool{} // hash types that are there, and right wherever they are
	for _, e := range j.s.entries {
		if e.protected || hashLen(e.typ) == 0 {
			continue
		}
		was, seen := right[e.typ]
		right[e.typ] = bytes.Equal(e.val, j.h[e.typ]) && (was || !seen)
	}
	for _, e := range j.s.entries {
		if e.protected {
			continue
		}
		for _, a := range j.tg.all {
			if !a.known || e.typ != a.scheme.SigTLV {
				continue
			}
			for t, ok := range right {
				if ok && (t == a.scheme.HashTLV || a.scheme.Key == alg.Ed25519) && verifySignature(a, j.h[t], e.val) == nil {
					j.v.Valid = true
					return
				}
			}
		}
	}
}
