// Package raw signs any file beside itself.
//
// The image is not changed and not understood: what is signed is every byte of
// it, and the output is a signature file. This is what `openssl dgst -sign`
// makes, what AWS FreeRTOS OTA jobs carry as base64, and what a bootloader of
// one's own checks with a public key that was compiled in.
//
// # Encodings
//
//	der         ECDSA as SEQUENCE { r, s }, as openssl and AWS have it (the default)
//	raw         ECDSA as r‖s, each of the curve's length, as chips and Renesas' ports have it
//	base64      der in base64, one line
//	base64-raw  raw in base64, one line
//
// RSA signatures are big-endian of the modulus' length and Ed25519 signatures
// are 64 bytes; der and raw are the same for them. No encoding says of itself
// which it is, so Verify takes the one that the profile names. When another
// one is there instead, it says which: a signature that is right and in the
// wrong encoding is the usual reason why a device refuses a good image.
//
// # Ed25519
//
// Pure Ed25519 signs the file itself, not its hash. The file then travels to
// the key, so it is bounded by alg.MaxMessage; larger files are refused with
// the schemes that take a digest.
//
// # What raw does not know
//
// There is no version, counter or product in the bytes, nothing names the key,
// and nothing makes a device look at the signature file. Detect therefore never
// claims a file: raw is used only when it is named.
//
// # Bytes unseen
//
// With SHA-256 schemes an image may stay at home: Format is an
// image.DigestFormat.
//
// # Two halves
//
// verify.go decides and shares constants with the rest, no code.
package raw

import (
	"io"

	"github.com/firmseal/firmseal/internal/image"
)

// Format is the raw format. It implements image.Format and image.DigestFormat.
type Format struct{}

var (
	_ image.Format       = Format{}
	_ image.DigestFormat = Format{}
)

// New gives the format.
func New() image.Format { return Format{} }

// formatName is the format's one name.
const formatName = "raw"

// The encodings of the signature file.
const (
	encDER       = "der"
	encRaw       = "raw"
	encBase64    = "base64"
	encBase64Raw = "base64-raw"
)

// Options are what a profile may set for signing.
type Options struct {
	Encoding string `json:"encoding"` // der (the default), raw, base64, base64-raw
}

// Name implements image.Format.
func (Format) Name() string { return formatName }

// Detect implements image.Format: any file could be raw, so none is.
func (Format) Detect(io.ReaderAt, int64) image.Score { return image.No }
