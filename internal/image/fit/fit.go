// Package fit is the U-Boot FIT format: a flattened device tree whose
// configurations are signed, and verified by U-Boot against keys in its own
// control device tree.
//
// # What a configuration signature covers
//
// A FIT names images under /images and ways to boot them under
// /configurations. The signature of a configuration covers the root node, the
// configuration, every image that it refers to with that image's hash and
// cipher nodes, and the strings block; the images' data are covered by their
// hash nodes. Which nodes those are is worked out anew by whoever signs and
// whoever verifies. The list that the image carries (hashed-nodes) is not
// signed; verifiers that believed it could be made to skip nodes
// (CVE-2026-46728). It is written for such old verifiers, never read to decide.
//
// The tags and names of all signature nodes are hashed, their properties are
// not. All signature nodes are therefore put in place before the first hash is
// made, and a signature node cannot be added to a configuration that is signed
// already without breaking that signature.
//
// # One request a configuration
//
// Plan gives one request for each configuration and key; the slot is the
// configuration's name, for a second key "NAME/signature-2". Image data stay
// in the source: they are hashed and copied in streams, embedded ones too.
//
// # Two halves
//
// Plan, Inspect and ExportTrust stand on package fdt. Verify (verify.go,
// verify_tree.go) has its own reader, its own walk and its own cryptography for
// what U-Boot does, and shares the names in constants.go only.
package fit

import (
	"encoding/binary"
	"io"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/problem"
)

// Format is the FIT format. It holds no state.
type Format struct{}

// New gives the format for the registry.
func New() image.Format { return Format{} }

var _ image.Format = Format{}

// Name is "fit".
func (Format) Name() string { return name }

// Detect looks for a device tree with /images in it. A device tree that is cut
// off or damaged is Likely, so that Inspect can say what is wrong with it; a
// sound one without images (a board's own) is not a FIT.
func (Format) Detect(r io.ReaderAt, size int64) image.Score {
	var b [4]byte
	if size < 4 {
		return image.No
	}
	if _, err := r.ReadAt(b[:], 0); err != nil && err != io.EOF {
		return image.No
	}
	if binary.BigEndian.Uint32(b[:]) != fdtMagic {
		return image.No
	}
	t, err := fdt.Read(r, size)
	if err != nil {
		return image.Likely
	}
	if t.Root.Child(imagesNode) == nil {
		return image.No
	}
	return image.Sure
}

func malformed(format string, a ...any) *problem.Error {
	return problem.New(problem.ImageMalformed, format, a...)
}

func badOption(format string, a ...any) *problem.Error {
	return problem.New(problem.ImageOptions, format, a...).WithHint("firmseal help format fit")
}
