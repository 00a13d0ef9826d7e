package raw

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// Inspect implements image.Format: size and digest, and whether the file is one
// that another tool signs and checks.
func (Format) Inspect(ctx context.Context, src image.Source) (*image.Report, error) {
	size := src.Size()
	if size <= 0 {
		return nil, errEmpty()
	}
	sum, err := digest(ctx, src, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	r := &image.Report{
		Format: formatName, Size: size,
		Tree: []image.Node{{Name: "file", Len: size, Value: "sha256 " + hex.EncodeToString(sum)}},
	}
	k, ok, err := sniff(src)
	if err != nil {
		return nil, err
	}
	if ok {
		r.Findings = append(r.Findings, image.Finding{
			Stage: image.StageContainer, Severity: image.Warn, Code: problem.ImageNotFirmware,
			What: "this is " + k.what + ", not firmware", Range: &image.Range{Len: min(size, sniffBytes)},
			Cause: "a detached signature protects its transport at most; no bootloader reads it", Next: k.next,
		})
	}
	return r, nil
}

// kind is a file that has its own signing.
type kind struct{ what, next string }

// sniffBytes is how much of a file's begin is looked at to tell what it is.
const sniffBytes = 4096

// sniff recognises packages, containers and archives. What it does not know is
// not called anything.
func sniff(src image.Source) (kind, bool, error) {
	size := src.Size()
	head := make([]byte, min(size, sniffBytes))
	if n, err := src.ReadAt(head, 0); n < len(head) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return kind{}, false, problem.New(problem.ImageTruncated, "the file's begin cannot be read").Because(err)
	}
	has := func(s string) bool { return bytes.HasPrefix(head, []byte(s)) }
	apk := kind{"an Alpine package (apk)", "sign it with abuild-sign, and its index with it; or sign the root file system image it goes into"}
	switch {
	case has("!<arch>\ndebian-binary"):
		return kind{"a Debian package (deb)", "sign the repository's Release file with gpg (apt checks that, not the package), or sign the root file system image it goes into"}, true, nil
	case has("\xed\xab\xee\xdb"):
		return kind{"an RPM package", "sign it with rpmsign --addsign, or sign the root file system image it goes into"}, true, nil
	case has("ADBd"), has("ADB."), has("ADBc"):
		return apk, true, nil
	case has("\x1f\x8b"):
		if name := firstInGzip(head); strings.HasPrefix(name, ".SIGN.") || name == ".PKGINFO" {
			return apk, true, nil
		}
	case has("PK\x03\x04"):
		if bytes.Contains(head, []byte("AndroidManifest.xml")) {
			return kind{"an Android application (apk)", "sign it with apksigner"}, true, nil
		}
		if bytes.Contains(head, []byte("META-INF/")) {
			return kind{"a Java archive (jar)", "sign it with jarsigner"}, true, nil
		}
		return kind{"a ZIP archive", "sign the firmware image inside it, in the format that its bootloader reads"}, true, nil
	case len(head) > 262 && string(head[257:262]) == "ustar":
		if container(src) {
			return kind{"a container image (OCI or docker archive)", "push it to a registry and sign it with cosign sign"}, true, nil
		}
	}
	return kind{}, false, nil
}

// firstInGzip is the name of the first file in a compressed tar that begins
// with head; empty if that is not what it is.
func firstInGzip(head []byte) string {
	z, err := gzip.NewReader(bytes.NewReader(head))
	if err != nil {
		return ""
	}
	var block [512]byte
	if n, _ := io.ReadFull(z, block[:]); n < 100 {
		return ""
	}
	name, _, _ := strings.Cut(string(block[:100]), "\x00")
	return name
}

// maxEntries is how far into a tar the marks of a container image are looked
// for.
const maxEntries = 64

// container looks for the names that OCI layouts and docker archives have.
func container(src image.Source) bool {
	t := tar.NewReader(io.NewSectionReader(src, 0, src.Size()))
	for range maxEntries {
		h, err := t.Next()
		if err != nil {
			return false // not a tar after all, or its end
		}
		switch strings.TrimPrefix(h.Name, "./") {
		case "oci-layout", "index.json", "blobs/", "blobs/sha256/", "manifest.json", "repositories":
			return true
		}
	}
	return false
}
