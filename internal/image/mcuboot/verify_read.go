package mcuboot

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/firmseal/firmseal/internal/image"
)

// This file reads an image for Verify, in the order and with the bounds of the
// bootloader's own code. It has nothing in common with the reader that Plan
// and Inspect use but the constants.

// seen is an image as the device meets it.
type seen struct {
	size int64 // of the file

	magic, loadAddr   uint32
	hdrSize, protSize uint16
	imgSize, flags    uint32
	major, minor      uint8
	revision          uint16
	build             uint32

	protOff, plainOff int64 // offsets of the TLV areas; protOff == plainOff without a protected one
	end               int64 // end of the plain area
	entries           []entry
	badEntry          *entry // the first one that does not fit, after which the device stops
}

// entry is one TLV.
type entry struct {
	off       int64 // of its type
	typ       uint16
	val       []byte
	protected bool
	says      int // for badEntry: the length that it claims
}

func (e entry) span() *image.Range {
	return &image.Range{Off: e.off, Len: int64(tlvHeadLen + len(e.val))}
}

func u16(b []byte) uint16 { return uint16(b[0]) | uint16(b[1])<<8 }
func u32(b []byte) uint32 { return uint32(u16(b)) | uint32(u16(b[2:]))<<16 }

// errShort means that the file ends where the device would go on reading.
var errShort = errors.New("the file ends")

func readAt(src image.Source, off int64, n int) ([]byte, error) {
	if off < 0 || off > src.Size() || int64(n) > src.Size()-off {
		return nil, errShort
	}
	b := make([]byte, n)
	got, err := src.ReadAt(b, off)
	if got == n {
		return b, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil, errShort
	}
	return nil, fmt.Errorf("reading the image at offset %d: %w", off, err)
}

// readHeader reads the fields of the header.
func readHeader(src image.Source) (*seen, error) {
	b, err := readAt(src, 0, headerLen)
	if err != nil {
		return nil, err
	}
	return &seen{
		size:  src.Size(),
		magic: u32(b[0:]), loadAddr: u32(b[4:]), hdrSize: u16(b[8:]), protSize: u16(b[10:]),
		imgSize: u32(b[12:]), flags: u32(b[16:]),
		major: b[20], minor: b[21], revision: u16(b[22:]), build: u32(b[24:]),
	}, nil
}

// payloadEnd is where the device looks for TLVs (BOOT_TLV_OFF).
func (s *seen) payloadEnd() int64 { return int64(s.hdrSize) + int64(s.imgSize) }

// hashEnd is where the device stops hashing.
func (s *seen) hashEnd() int64 { return s.payloadEnd() + int64(s.protSize) }

// A tlvFault is a refusal of bootutil_tlv_iter_begin.
type tlvFault struct {
	what             string
	off              int64
	expected, actual string
	short            bool
}

// findAreas is bootutil_tlv_iter_begin.
func (s *seen) findAreas(src image.Source) (*tlvFault, error) {
	s.protOff = s.payloadEnd()
	s.plainOff = s.protOff
	info, err := readAt(src, s.protOff, infoLen)
	if errors.Is(err, errShort) {
		return &tlvFault{
			what: "the image ends before its TLVs", off: s.protOff, short: true,
			expected: fmt.Sprintf("a TLV area at offset %d", s.protOff), actual: fmt.Sprintf("the file has %d bytes", s.size),
		}, nil
	} else if err != nil {
		return nil, err
	}
	if u16(info) == infoMagicProtected {
		if u16(info[2:]) != s.protSize {
			return &tlvFault{
				what: "header and protected TLV area disagree about its size", off: s.protOff + 2,
				expected: fmt.Sprintf("%d bytes as in the header", s.protSize), actual: fmt.Sprintf("%d bytes", u16(info[2:])),
			}, nil
		}
		s.plainOff += int64(s.protSize)
		info, err = readAt(src, s.plainOff, infoLen)
		if errors.Is(err, errShort) {
			return &tlvFault{
				what: "the image ends within its protected TLVs", off: s.plainOff, short: true,
				expected: fmt.Sprintf("a TLV area at offset %d", s.plainOff), actual: fmt.Sprintf("the file has %d bytes", s.size),
			}, nil
		} else if err != nil {
			return nil, err
		}
	} else if s.protSize != 0 {
		return &tlvFault{
			what: "the protected TLV area is missing", off: s.protOff,
			expected: fmt.Sprintf("the magic %#04x", infoMagicProtected), actual: fmt.Sprintf("%#04x", u16(info)),
		}, nil
	}
	if u16(info) != infoMagic {
		return &tlvFault{
			what: "there is no TLV area after the payload", off: s.plainOff,
			expected: fmt.Sprintf("the magic %#04x", infoMagic), actual: fmt.Sprintf("%#04x", u16(info)),
		}, nil
	}
	s.end = s.plainOff + int64(u16(info[2:]))
	return nil, nil
}

// walk is bootutil_tlv_iter_next until its end: protected entries first, then
// the others. It reads at most two areas of 64 KiB.
func (s *seen) walk(src image.Source) error {
	if s.end > s.size {
		return errShort
	}
	b, err := readAt(src, s.protOff, int(s.end-s.protOff))
	if err != nil {
		return err
	}
	at, stop := int64(infoLen), int64(len(b))
	border := s.plainOff - s.protOff // of the areas, 0 without a protected one
	for at < stop {
		if border > 0 && at == border {
			at += infoLen
			continue
		}
		prot := at < border
		limit := stop
		if prot {
			// The device lets a protected TLV reach over the border. Only who holds
			// the key can make one, and nobody honest does.
			limit = border
		}
		e := entry{off: s.protOff + at, protected: prot}
		if limit-at < tlvHeadLen {
			s.badEntry = &e
			return nil
		}
		e.typ = u16(b[at:])
		n := int64(u16(b[at+2:]))
		if n > limit-at-tlvHeadLen {
			e.says = int(n)
			s.badEntry = &e
			return nil
		}
		e.val = b[at+tlvHeadLen : at+tlvHeadLen+n]
		s.entries = append(s.entries, e)
		at += tlvHeadLen + n
	}
	return nil
}

// digests holds the hashes of one region, by hash TLV type.
type digests map[uint16][]byte

// hashRegion hashes the first n bytes with each of the wanted hashes, in one
// pass and with one buffer.
func hashRegion(ctx context.Context, src image.Source, n int64, want map[uint16]bool) (digests, error) {
	hs := map[uint16]hash.Hash{}
	for t := range want {
		switch t {
		case tlvSHA256:
			hs[t] = sha256.New()
		case tlvSHA384:
			hs[t] = sha512.New384()
		case tlvSHA512:
			hs[t] = sha512.New()
		}
	}
	buf := make([]byte, min(n, 1<<18))
	for off := int64(0); off < n; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buf[:min(int64(len(buf)), n-off)]
		if got, err := src.ReadAt(b, off); got != len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				return nil, errShort
			}
			return nil, fmt.Errorf("reading the image at offset %d: %w", off, err)
		}
		for _, h := range hs {
			h.Write(b)
		}
		off += int64(len(b))
	}
	out := digests{}
	for t, h := range hs {
		out[t] = h.Sum(nil)
	}
	return out, nil
}
