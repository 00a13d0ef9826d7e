package mcuboot

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// This file reads an image for the half that makes and shows images. Verify
// has its own reader.

var le = binary.LittleEndian

// flagNames are imgtool's names, in the order in which dumpinfo prints them.
var flagNames = [...]struct {
	Bit  uint32
	Name string
}{
	{flagPIC, "PIC"},
	{flagAES128, "ENCRYPTED_AES128"},
	{flagAES256, "ENCRYPTED_AES256"},
	{flagNonBootable, "NON_BOOTABLE"},
	{flagRAMLoad, "RAM_LOAD"},
	{flagROMFixed, "ROM_FIXED"},
	{flagLZMA1, "COMPRESSED_LZMA1"},
	{flagLZMA2, "COMPRESSED_LZMA2"},
	{flagARMThumb, "COMPRESSED_ARM_THUMB"},
}

// tlvNames are imgtool's names.
var tlvNames = map[uint16]string{
	tlvKeyHash: "KEYHASH", tlvPubKey: "PUBKEY",
	tlvSHA256: "SHA256", tlvSHA384: "SHA384", tlvSHA512: "SHA512",
	tlvRSA2048: "RSA2048", tlvECDSA224: "ECDSA224", tlvECDSA: "ECDSASIG", tlvRSA3072: "RSA3072",
	tlvEd25519: "ED25519", tlvSigPure: "SIG_PURE",
	tlvEncRSA: "ENCRSA2048", tlvEncKW: "ENCKW", tlvEncEC256: "ENCEC256",
	tlvEncX25519: "ENCX25519", tlvEncX512: "ENCX25519_SHA512",
	tlvDependency: "DEPENDENCY", tlvSecCnt: "SEC_CNT", tlvBootRecord: "BOOT_RECORD",
	tlvDecompSize: "DECOMP_SIZE", tlvDecompSHA: "DECOMP_SHA", tlvDecompSig: "DECOMP_SIGNATURE",
	tlvCompDec: "COMP_DEC_SIZE", tlvVendorUUID: "UUID_VID", tlvClassUUID: "UUID_CID",
}

type header struct {
	Magic, LoadAddr   uint32
	HdrSize, ProtSize uint16
	ImgSize, Flags    uint32
	Version           version
	Pad               uint32
}

func (h header) tlvOff() int64 { return int64(h.HdrSize) + int64(h.ImgSize) }

func (h header) encode() []byte {
	b := make([]byte, headerLen)
	le.PutUint32(b[offMagic:], h.Magic)
	le.PutUint32(b[offLoadAddr:], h.LoadAddr)
	le.PutUint16(b[offHdrSize:], h.HdrSize)
	le.PutUint16(b[offProtSize:], h.ProtSize)
	le.PutUint32(b[offImgSize:], h.ImgSize)
	le.PutUint32(b[offFlags:], h.Flags)
	b[offMajor], b[offMinor] = h.Version.Major, h.Version.Minor
	le.PutUint16(b[offRevision:], h.Version.Revision)
	le.PutUint32(b[offBuild:], h.Version.Build)
	le.PutUint32(b[offPad:], h.Pad)
	return b
}

func decodeHeader(b []byte) header {
	return header{
		Magic: le.Uint32(b[offMagic:]), LoadAddr: le.Uint32(b[offLoadAddr:]),
		HdrSize: le.Uint16(b[offHdrSize:]), ProtSize: le.Uint16(b[offProtSize:]),
		ImgSize: le.Uint32(b[offImgSize:]), Flags: le.Uint32(b[offFlags:]),
		Version: version{b[offMajor], b[offMinor], le.Uint16(b[offRevision:]), le.Uint32(b[offBuild:])},
		Pad:     le.Uint32(b[offPad:]),
	}
}

func (h header) flagText() string {
	var names []string
	rest := h.Flags
	for _, f := range flagNames {
		if rest&f.Bit != 0 {
			names = append(names, f.Name)
			rest &^= f.Bit
		}
	}
	if rest != 0 {
		names = append(names, fmt.Sprintf("unknown %#x", rest))
	}
	return strings.Join(names, " ")
}

type tlv struct {
	Off   int64 // of its type field
	Type  uint16
	Value []byte
}

func tlvName(t uint16) string {
	if n := tlvNames[t]; n != "" {
		return n
	}
	if t&0xff >= tlvVendorMin && t <= tlvVendorMax {
		return fmt.Sprintf("vendor %#04x", t)
	}
	return fmt.Sprintf("unknown %#04x", t)
}

// area is one TLV area.
type area struct {
	Off   int64
	Total int64 // with its info header, as the info header says
	TLVs  []tlv
}

func (a *area) end() int64 { return a.Off + a.Total }

// shaped is an image that begins with an MCUboot header.
type shaped struct {
	header
	Prot, Plain *area // nil where there is none
}

// end is where the last area ends, or the payload.
func (s *shaped) end() int64 {
	switch {
	case s.Plain != nil:
		return s.Plain.end()
	case s.Prot != nil:
		return s.Prot.end()
	}
	return s.tlvOff()
}

func malformed(format string, a ...any) *problem.Error {
	return problem.New(problem.ImageMalformed, format, a...)
}

// readShaped reads the header and the TLV areas of an image that begins with
// the magic. What could be read is returned beside an error.
func readShaped(src image.Source) (*shaped, error) {
	b := make([]byte, headerLen)
	if err := readFull(src, b, 0, "the header"); err != nil {
		return nil, err
	}
	s := &shaped{header: decodeHeader(b)}
	if s.HdrSize < headerLen {
		return s, malformed("the header says that it is %d bytes long", s.HdrSize).Seen("a header has at least %d bytes", headerLen)
	}
	if s.tlvOff() > src.Size() {
		return s, problem.New(problem.ImageTruncated, "the MCUboot image ends before its payload does").
			Seen("header and payload are %d bytes, the file has %d", s.tlvOff(), src.Size())
	}
	off := s.tlvOff()
	// Either no area at all (a build that leaves the signing to others, maybe
	// padded), or the protected and then the plain one.
	info, ok := readInfo(src, off)
	if s.ProtSize != 0 {
		if !ok || info[0] != infoMagicProtected {
			return s, malformed("the protected TLV area is missing").
				Seen("the header says it has %d bytes at offset %d", s.ProtSize, off)
		}
		if info[1] != s.ProtSize {
			return s, malformed("header and protected TLV area disagree about its size").Seen("%d and %d bytes", s.ProtSize, info[1])
		}
		a, err := readArea(src, off, int64(info[1]))
		if err != nil {
			return s, err
		}
		s.Prot = a
		off = a.end()
		info, ok = readInfo(src, off)
	} else if ok && info[0] == infoMagicProtected {
		return s, malformed("there is a protected TLV area that the header does not announce").
			Seen("magic %#04x at offset %d, ih_protect_tlv_size 0", infoMagicProtected, off)
	}
	if !ok || info[0] != infoMagic {
		return s, nil
	}
	a, err := readArea(src, off, int64(info[1]))
	if err != nil {
		return s, err
	}
	s.Plain = a
	return s, nil
}

// readInfo gives magic and total at off; not ok where the file has no 4 bytes.
func readInfo(src image.Source, off int64) (v [2]uint16, ok bool) {
	b := make([]byte, infoLen)
	if err := readFull(src, b, off, ""); err != nil {
		return v, false
	}
	return [2]uint16{le.Uint16(b), le.Uint16(b[2:])}, true
}

func readArea(src image.Source, off, total int64) (*area, error) {
	if total < infoLen {
		return nil, malformed("the TLV area at offset %d says that it is %d bytes long", off, total).
			Seen("its own info header has %d", infoLen)
	}
	b := make([]byte, total) // at most 64 KiB
	if err := readFull(src, b, off, "the TLV area"); err != nil {
		return nil, err
	}
	a := &area{Off: off, Total: total}
	for i := int64(infoLen); i < total; {
		if total-i < tlvHeadLen {
			return nil, malformed("a TLV at offset %d does not fit its area", off+i).Seen("%d bytes are left", total-i)
		}
		t := tlv{Off: off + i, Type: le.Uint16(b[i:])}
		n := int64(le.Uint16(b[i+2:]))
		i += tlvHeadLen
		if n > total-i {
			return nil, malformed("TLV %s at offset %d does not fit its area", tlvName(t.Type), t.Off).
				Seen("it says %d bytes, %d are left", n, total-i)
		}
		t.Value = b[i : i+n]
		a.TLVs = append(a.TLVs, t)
		i += n
	}
	return a, nil
}

// readFull reads len(b) bytes at off; fewer is IMG.TRUNCATED.
func readFull(r io.ReaderAt, b []byte, off int64, what string) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return problem.New(problem.ImageTruncated, "the file ends within %s", what).
			Seen("%d bytes at offset %d are wanted, %d are there", len(b), off, n).Because(err)
	}
	return fmt.Errorf("reading %d bytes at offset %d: %w", len(b), off, err)
}

const streamBuffer = 256 << 10

// stream copies n bytes from off of src to w with flat memory: what comes next
// is read while w takes what came before, so that hashing waits for no disk.
// When it returns, nobody reads src any more.
func stream(ctx context.Context, src image.Source, off, n int64, w io.Writer) error {
	type chunk struct {
		b   []byte
		err error
	}
	const buffers = 2
	free, filled, stop := make(chan []byte, buffers), make(chan chunk, buffers), make(chan struct{})
	for range buffers {
		free <- make([]byte, min(streamBuffer, n))
		if n <= streamBuffer {
			break
		}
	}
	go func() {
		defer close(filled)
		for n > 0 {
			var b []byte
			select {
			case b = <-free:
			case <-stop:
				return
			}
			b = b[:min(int64(len(b)), n)]
			err := ctx.Err()
			if err == nil {
				err = readFull(src, b, off, "the image")
			}
			filled <- chunk{b, err} // there is room for every buffer
			if err != nil {
				return
			}
			off += int64(len(b))
			n -= int64(len(b))
		}
	}()
	defer func() {
		close(stop)
		for range filled { // until the reader has ended
		}
	}()
	for c := range filled {
		if c.err != nil {
			return c.err
		}
		if _, err := w.Write(c.b); err != nil {
			return fmt.Errorf("writing the image: %w", err)
		}
		free <- c.b[:cap(c.b)]
	}
	return nil
}

func appendTLV(b []byte, typ uint16, value []byte) []byte {
	b = le.AppendUint16(b, typ)
	b = le.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// closeArea puts the info header before TLVs, or gives nothing for nothing.
func closeArea(magic uint16, tlvs []byte) ([]byte, error) {
	if len(tlvs) == 0 {
		return nil, nil
	}
	n := len(tlvs) + infoLen
	if n > maxArea {
		return nil, problem.New(problem.ImageNoRoom, "the TLVs do not fit one area").Seen("%d bytes, an area has at most %d", n, maxArea)
	}
	b := le.AppendUint16(make([]byte, 0, n), magic)
	b = le.AppendUint16(b, uint16(n))
	return append(b, tlvs...), nil
}
