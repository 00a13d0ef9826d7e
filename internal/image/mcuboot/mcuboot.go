// Package mcuboot signs and judges images for the MCUboot bootloader.
//
// # The bytes
//
//	header (32 bytes of fields, padded to ih_hdr_size)   ┐
//	payload (ih_img_size bytes)                          │ hashed
//	protected TLVs: SEC_CNT, DEPENDENCY, UUIDs, vendor   ┘
//	TLVs: hash, then a KEYHASH or PUBKEY before each signature
//	the slot's end, if padded: erased bytes, image_ok, boot magic
//
// All numbers are little-endian. ih_protect_tlv_size is in the header and the
// header is hashed, so that everything in the protected area is decided when
// the session is planned. The TLVs after it are in nobody's signature: a
// bootloader with a TLV allow-list refuses what does not belong there, one
// without it takes even a security counter from there.
//
// # What is signed
//
// ECDSA and RSA-PSS sign the image hash as a digest. Ed25519 signs the bytes
// of the image hash as its message: plain RFC 8032, never the prehashed
// variant. The device finds the key by the hash of its own encoding of it
// (PKCS #1 for RSA, SubjectPublicKeyInfo for the others) and with the image's
// hash function: SHA-384 for P-384.
//
// Several keys may sign one image. A device skips pairs whose key it does not
// know; the last signature by a key that it knows decides.
//
// # Who judges
//
// Verify follows boot/bootutil/src/image_validate.c step by step, as it was
// compiled: one signature type, one hash, and the options that change the
// outcome. It also says what `imgtool verify` would say, because the two read
// TLV types differently: the device 16 bits, imgtool 8.
//
// # What is not done
//
// Big-endian headers, encryption, compression, signatures over the whole
// image (SIG_PURE) and BOOT_RECORD are not written. Images that have them are
// shown by Inspect, and refused by Verify as a bootloader without them does.
package mcuboot

import (
	"encoding/binary"
	"io"

	"github.com/firmseal/firmseal/internal/image"
)

// Format is the MCUboot image format. The zero value is ready for use; New
// gives it as an image.Format.
type Format struct{}

// New gives the format.
func New() image.Format { return Format{} }

var _ image.Stamper = Format{}

// Name implements image.Format.
func (Format) Name() string { return formatName }

// Detect implements image.Format: the magic, and that the header's sizes lie
// within the file.
func (Format) Detect(r io.ReaderAt, size int64) image.Score {
	b := make([]byte, headerLen)
	if n, _ := r.ReadAt(b, 0); n < headerLen || binary.LittleEndian.Uint32(b) != magic {
		return image.No
	}
	h := decodeHeader(b)
	if h.HdrSize < headerLen || h.tlvOff()+int64(h.ProtSize) > size {
		return image.Likely
	}
	return image.Sure
}
