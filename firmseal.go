// Package firmseal is what a device must understand to trust a firmware image:
// the release statement, the seal over it, the trust root that says who may
// seal, the proof that the release is in a public log, and the verdict.
//
// It depends on the standard library and golang.org/x/mod/sumdb only, does no
// input or output beyond reading the image that it is given, and is what
// gateways and agents import. The program that makes releases lives below
// internal. The formats are specified for other languages in docs/SPEC-SEAL.md.
//
// # Seal
//
// A release is an image and a .seal file beside it. The seal is a DSSE envelope
// over an in-toto statement: these files, named by SHA-256, are version V of
// product P for hardware H, with security counter C. One signature covers it
// all, so neither the image nor its metadata can be exchanged alone. A seal is
// permanent. It says what was approved and signed, not what is current; a
// device asks elsewhere what to install now, and asks the seal whether it may.
//
// # Trust root
//
// A [TrustRoot] is all that a device believes without proof: seal keys, each
// for one environment, how many of them it takes, and the log. It comes to the
// device before any release, from the maker of the device.
//
// # Log proof
//
// Before a key is used, Firmseal writes down that it will be. The .tlog-proof
// file beside the seal proves that the outcome of the request is in that log:
// the [Leaf] with the digest of this statement, the way from it to the log's
// root, and the log's signature over the root. A key that was stolen can make a
// seal, but not one that is missing from the log and still verifies.
//
// # Verify
//
// [Verify] puts it together, and every refusal is an [Error] with a stable
// [Code], the values seen and the next thing to do. A device that wants to know
// whether an image is worth fetching calls [VerifySeal] first and
// [Verified.CheckImage] on the bytes as they come.
//
// # What Verify does not do
//
// It does not know what is current: a good seal of an old release stays good,
// and what refuses that release is the security counter that the device has
// stored. The device must store it, and raise it when a new image is confirmed,
// not when it is installed.
//
// It does not look into the image: that the bootloader will accept it was
// checked before the seal was made, by Firmseal's own reading of the format.
// It does not resolve the statement's dependencies, since it cannot see the
// device's other images; the caller does.
//
// It does not ask whether the log shows everybody the same: that is for
// witnesses. It keeps nothing: comparing [Verified.Checkpoint] with the largest
// one seen before is the caller's.
//
// And it does not replace the check at boot. A device that verifies only here
// runs whatever is written to its flash by another way.
package firmseal
