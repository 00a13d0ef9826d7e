package firmseal

// A Code names one cause of a refusal. It is stable: scripts, dashboards and
// devices may compare it; a code is never reused for a second cause.
//
// The codes in this package are those that a device can meet while it checks
// a release. The whole list, with the help text of each, is printed by
// `firmseal help codes`.
type Code string

const (
	CodeSealMissing         Code = "SEAL.MISSING"             // there is no seal: a digest alone says nothing about who made the image
	CodeEnvelopeMalformed   Code = "SEAL.MALFORMED"           // the envelope or statement cannot be parsed as specified
	CodeEnvelopeTooLarge    Code = "SEAL.TOO_LARGE"           // larger than the specification allows
	CodeSealType            Code = "SEAL.TYPE_UNKNOWN"        // a DSSE envelope or in-toto statement about something else than a firmware release
	CodeSealUntrusted       Code = "SEAL.UNTRUSTED_KEY"       // no signature by a seal key of the trust root
	CodeSealThreshold       Code = "SEAL.THRESHOLD"           // fewer distinct trusted keys than the threshold
	CodeSealInvalid         Code = "SEAL.INVALID_SIGNATURE"   // a trusted key's signature does not verify: the statement was changed
	CodeImageMismatch       Code = "IMG.HASH_MISMATCH"        // the image is not the one the statement names: the image was changed
	CodeImageTruncated      Code = "IMG.TRUNCATED"            // the image is shorter than stated
	CodeImageSignature      Code = "IMG.SIGNATURE_MISMATCH"   // the detached signature file is not the one the statement names
	CodeProofMissing        Code = "LOG.PROOF_MISSING"        // the trust root asks for a log proof and there is none
	CodeProofMalformed      Code = "LOG.PROOF_MALFORMED"      // the .tlog-proof cannot be parsed as specified
	CodeLeafMalformed       Code = "LOG.LEAF_MALFORMED"       // a log leaf cannot be parsed as specified
	CodeProofInvalid        Code = "LOG.PROOF_INVALID"        // the inclusion proof does not lead to the checkpoint
	CodeProofOtherSeal      Code = "LOG.PROOF_OTHER_RELEASE"  // the proven leaf is about another statement
	CodeCheckpointUntrusted Code = "LOG.CHECKPOINT_UNTRUSTED" // not signed by the log of the trust root
	CodeEnvironment         Code = "POLICY.ENVIRONMENT"       // a test release where production is demanded, or the reverse
	CodeProduct             Code = "IMG.PRODUCT_MISMATCH"     // a release of another product
	CodeHardware            Code = "IMG.HW_INCOMPATIBLE"      // not for this hardware id
	CodeRollback            Code = "ROLLBACK.DENIED"          // the security counter is below the device's
	CodeEmergencyCounter    Code = "ROLLBACK.EMERGENCY"       // an emergency release whose security counter is not above the device's
	CodeVersionOrder        Code = "ROLLBACK.VERSION_ORDER"   // the version is below the device's
	CodeVersionFloor        Code = "ROLLBACK.MINIMUM_VERSION" // the device runs less than the release's minimum version
	CodeDeviceVersion       Code = "ROLLBACK.DEVICE_VERSION"  // the device's version is needed, and unknown or no version
	CodeTrustRootMalformed  Code = "TRUST.ROOT_MALFORMED"     // the trust root file cannot be used
	CodeProductUntrusted    Code = "TRUST.PRODUCT_FOREIGN"    // the trust root does not speak for this product
	CodeWeakAlgorithm       Code = "ALG.WEAK"                 // an algorithm or parameter below the floor
	CodeUnsupportedAlg      Code = "ALG.UNSUPPORTED"          // an algorithm that is not used here
)
