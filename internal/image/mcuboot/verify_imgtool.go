package mcuboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// What `imgtool verify` prints, by outcome.
const (
	imgtoolOK       = "Image was correctly validated"
	imgtoolMagic    = "Invalid image magic; is this an MCUboot image?"
	imgtoolTLVMagic = "Invalid TLV info magic; is this an MCUboot image?"
	imgtoolHash     = "Image has an invalid hash"
	imgtoolNoSig    = "No signature found for the given key"
	imgtoolKeyType  = "Key type does not match TLV record"
	imgtoolCrash    = "a Python traceback" // it unpacks what is not there
)

// imgtool says what imgtool 2.5 prints for these bytes and each trusted key,
// and whether that is another decision than the device's. People compare the
// two; they differ where imgtool reads a TLV type in 8 bits, and wherever the
// device has rules that imgtool has not.
func (j *judge) imgtool(ctx context.Context, src image.Source) error {
	words := ""
	if len(j.tg.all) == 0 {
		w, err := j.imgtoolWords(ctx, src, nil)
		if err != nil {
			return err
		}
		words = w
	}
	for i := range j.tg.all {
		w, err := j.imgtoolWords(ctx, src, &j.tg.all[i])
		if err != nil {
			return err
		}
		if words == "" || w == imgtoolOK {
			words = w
		}
	}
	for i := range j.v.Findings {
		if f := &j.v.Findings[i]; f.Severity == image.Fatal && words != imgtoolOK {
			f.Device = append(f.Device, "imgtool: "+words)
		}
	}
	if (words == imgtoolOK) == j.v.Accepted {
		j.ok(image.StageTarget, nil, "imgtool verify decides like the device: %s", words)
		return nil
	}
	j.add(image.Finding{
		Stage: image.StageTarget, Severity: image.Warn, Code: problem.TargetCapability, What: "imgtool verify and the device disagree about this image",
		Expected: map[bool]string{true: "the device accepts it", false: "the device refuses it"}[j.v.Accepted], Actual: "imgtool: " + words,
		Cause: "imgtool reads TLV types in 8 bits, knows neither counters nor allow-lists, and does not compare key hashes", Next: "go by the device",
	})
	return nil
}

// imgtoolWords follows Image.verify of imgtool 2.5 for one key, or none.
func (j *judge) imgtoolWords(ctx context.Context, src image.Source, a *anchor) (string, error) {
	short := func(err error) (string, error) {
		if errors.Is(err, errShort) {
			return imgtoolCrash, nil
		}
		return "", err
	}
	b, err := readAt(src, 0, 28)
	if err != nil {
		return short(err)
	}
	if u32(b) != magic {
		return imgtoolMagic, nil
	}
	off := int64(u16(b[8:])) + int64(u32(b[12:]))
	info, err := readAt(src, off, infoLen)
	if err != nil {
		return short(err)
	}
	if u16(info) == infoMagicProtected {
		off += int64(u16(info[2:]))
		if info, err = readAt(src, off, infoLen); err != nil {
			return short(err)
		}
	}
	if u16(info) != infoMagic {
		return imgtoolTLVMagic, nil
	}
	total := int64(u16(info[2:]))
	area, err := readAt(src, off, int(min(total, src.Size()-off))) // a slice in Python ends where the file does
	if err != nil {
		return short(err)
	}
	rd := imgtoolReader{area: area, total: total}
	if pure, ok := rd.pure(); !ok {
		return imgtoolCrash, nil
	} else if pure {
		// imgtool would check an Ed25519 signature over the whole image, which is
		// not a thing that this format makes.
		return imgtoolNoSig, nil
	}
	return j.imgtoolVerify(ctx, src, rd, off, a)
}

// imgtoolReader walks the plain TLV area with imgtool's 8-bit types.
type imgtoolReader struct {
	area  []byte
	total int64
}

// each calls f for every TLV. It is false where Python would fail to unpack.
func (rd imgtoolReader) each(f func(typ uint16, val []byte) (stop bool)) bool {
	size := int64(len(rd.area))
	for at := int64(infoLen); at < rd.total; {
		if at+tlvHeadLen > size {
			return false
		}
		n := int64(u16(rd.area[at+2:]))
		val := rd.area[at+tlvHeadLen : min(at+tlvHeadLen+n, size)]
		if f(uint16(rd.area[at]), val) {
			return true
		}
		at += tlvHeadLen + n
	}
	return true
}

func (rd imgtoolReader) pure() (pure, ok bool) {
	ok = rd.each(func(t uint16, _ []byte) bool {
		pure = pure || t == tlvSigPure
		return pure
	})
	return pure, ok
}

// imgtoolHashes are the --sha values that imgtool takes for a public key.
func imgtoolHashes(a *anchor) []uint16 {
	if a == nil {
		return []uint16{tlvSHA256, tlvSHA384, tlvSHA512}
	}
	switch a.scheme.Key {
	case alg.P256, alg.Ed25519:
		return []uint16{tlvSHA256, tlvSHA512}
	case alg.P384:
		return []uint16{tlvSHA384}
	}
	return []uint16{tlvSHA256}
}

// imgtoolVerify is the second walk of Image.verify. The hash region is nearly
// always the device's, which is hashed already.
func (j *judge) imgtoolVerify(ctx context.Context, src image.Source, rd imgtoolReader, regionEnd int64, a *anchor) (string, error) {
	if a != nil && !a.known {
		return imgtoolKeyType, nil // imgtool refuses to load such a key at all
	}
	want := map[uint16]bool{}
	if a != nil {
		want[a.scheme.HashTLV] = true
	}
	rd.each(func(t uint16, _ []byte) bool {
		if hashLen(t) > 0 {
			want[t] = true
		}
		return false
	})
	h := j.h
	for t := range want {
		if h[t] == nil || regionEnd != j.s.hashEnd() {
			h = nil
		}
	}
	if h == nil {
		var err error
		if h, err = hashRegion(ctx, src, regionEnd, want); err != nil {
			return "", fmt.Errorf("hashing as imgtool does: %w", err)
		}
	}
	words := imgtoolNoSig
	var digest []byte
	whole := rd.each(func(t uint16, val []byte) bool {
		switch {
		case hashLen(t) > 0:
			digest = h[t]
			switch {
			case !slices.Contains(imgtoolHashes(a), t):
				words = imgtoolKeyType
			case !bytes.Equal(val, digest):
				words = imgtoolHash
			case a == nil:
				words = imgtoolOK
			default:
				return false
			}
			return true
		case a != nil && t == a.scheme.SigTLV:
			over := h[a.scheme.HashTLV]
			if a.scheme.Key == alg.Ed25519 {
				if over = digest; over == nil {
					words = imgtoolCrash
					return true
				}
			}
			if a.scheme.SigTLV == tlvECDSA && len(val) < 2 {
				words = imgtoolCrash
				return true
			}
			sig := val
			if a.scheme.SigTLV == tlvECDSA {
				sig = val[:min(int(val[1])+2, len(val))]
			}
			if alg.Verify(a.scheme.Alg, a.pub, over, sig) == nil {
				words = imgtoolOK
				return true
			}
		}
		return false
	})
	if !whole {
		return imgtoolCrash, nil
	}
	return words, nil
}
