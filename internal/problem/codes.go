package problem

import (
	"net/http"
	"sort"

	"github.com/firmseal/firmseal"
)

// Exit codes of the command line, as in `firmseal help exit-codes`. They are a
// contract with scripts.
const (
	ExitOK        = 0
	ExitError     = 1
	ExitUsage     = 2
	ExitRefused   = 3  // verification says no
	ExitForbidden = 4  // not logged in, or not allowed
	ExitPolicy    = 5  // policy denied
	ExitPending   = 6  // approval pending
	ExitNotFound  = 7  // no such thing
	ExitGate      = 8  // a gate or precondition is not met
	ExitTemporary = 75 // EX_TEMPFAIL: retry later
	ExitInterrupt = 130
)

// Entry is a code's row in the one list.
type Entry struct {
	Code   Code
	Title  string // a few words
	Status int    // HTTP
	Exit   int    // process
	Help   string // what it means and what to do, printed offline by `firmseal help CODE`
}

// Codes that are about more than one package's work.
const (
	Internal     Code = "INTERNAL"
	Usage        Code = "USAGE"
	NotFound     Code = "NOT_FOUND"
	Unavailable  Code = "UNAVAILABLE"
	Conflict     Code = "CONFLICT"
	BadRequest   Code = "REQUEST.MALFORMED"
	TooLarge     Code = "REQUEST.TOO_LARGE"
	TooSlow      Code = "REQUEST.TOO_SLOW"
	BadMethod    Code = "REQUEST.METHOD"
	Unauthorized Code = "AUTH.UNAUTHENTICATED"
	Forbidden    Code = "AUTH.FORBIDDEN"
)

// db.
const (
	DBURL        Code = "DB.URL"
	DBOpen       Code = "DB.OPEN"
	DBNewer      Code = "DB.NEWER"
	DBNotDurable Code = "DB.NOT_DURABLE"
	DBFailed     Code = "DB.WRITE_FAILED"
)

// blob.
const (
	BlobDigest  Code = "BLOB.DIGEST"
	BlobOffset  Code = "BLOB.OFFSET"
	BlobCorrupt Code = "BLOB.CORRUPT"
	BlobSize    Code = "BLOB.SIZE"
	BlobFull    Code = "BLOB.NO_SPACE"
)

// image and its formats.
const (
	ImageUnknownFormat Code = "IMG.UNKNOWN_FORMAT"
	ImageMalformed     Code = "IMG.MALFORMED"
	ImageTruncated          = firmseal.CodeImageTruncated
	ImageOptions       Code = "IMG.OPTIONS"
	ImageNoRoom        Code = "IMG.NO_ROOM"
	ImageAlreadySigned Code = "IMG.ALREADY_SIGNED"
	ImageNotFirmware   Code = "IMG.NOT_FIRMWARE"
	SigMissing         Code = "SIG.MISSING"
	SigInvalid         Code = "SIG.INVALID_CONTENT"
	SigEncoding        Code = "SIG.ENCODING"
	SigCoverage        Code = "SIG.COVERAGE"
	TrustAnchorMissing Code = "TRUST.ANCHOR_MISSING"
	TrustNotEnforced   Code = "TRUST.NOT_ENFORCED"
	TargetCapability   Code = "TARGET.UNSUPPORTED"
	AlgWeak                 = firmseal.CodeWeakAlgorithm
	AlgUnsupported          = firmseal.CodeUnsupportedAlg
)

// image/mcuboot.
const RollbackCounterMissing Code = "ROLLBACK.COUNTER_MISSING"

// keys.
const (
	KeyLocked      Code = "KEY.LOCKED"
	KeyExists      Code = "KEY.EXISTS"
	KeyNotFound    Code = "KEY.NOT_FOUND"
	KeyMalformed   Code = "KEY.MALFORMED"
	KeyRetired     Code = "KEY.RETIRED"
	KeyBinding     Code = "KEY.BINDING"
	KeyTicket      Code = "KEY.TICKET_REFUSED"
	KeyUnavailable Code = "KEY.UNAVAILABLE"
)

// tlog.
const (
	LogBehind       Code = "LOG.BEHIND"
	LogForked       Code = "LOG.FORKED"
	LogPlaceMissing Code = "LOG.SECOND_PLACE_MISSING"
	LogPlace        Code = "LOG.SECOND_PLACE"
	LogAltered      Code = "LOG.ALTERED"
	LogLeaf         Code = "LOG.LEAF_REFUSED"
	LogNotIncluded  Code = "LOG.NOT_INCLUDED"
	LogClosed       Code = "LOG.CLOSED"
)

// policy.
const (
	PolicyProfile   Code = "POLICY.PROFILE_UNKNOWN"
	PolicyProduct   Code = "POLICY.PRODUCT"
	PolicyFormat    Code = "POLICY.FORMAT"
	PolicyVersion   Code = "POLICY.VERSION_INVALID"
	PolicyOlder     Code = "POLICY.VERSION_BELOW_RELEASED"
	PolicyMetadata  Code = "POLICY.METADATA_MISSING"
	PolicyCounter   Code = "POLICY.COUNTER_BELOW_RELEASED"
	PolicyEmergency Code = "POLICY.EMERGENCY_COUNTER"
	PolicyUnseen    Code = "POLICY.BYTES_UNSEEN"
	PolicyClaims    Code = "POLICY.IMAGE_CLAIMS"
	PolicyKey       Code = "POLICY.KEY_MISMATCH"
	PolicyRule      Code = "POLICY.RULE"
)

// signing and release.
const (
	VersionTaken       Code = "POLICY.VERSION_TAKEN"
	PolicyMissing      Code = "POLICY.NONE"
	PolicyMalformed    Code = "POLICY.MALFORMED"
	StateAltered       Code = "STATE.ALTERED"
	RequestState       Code = "REQUEST.STATE"
	RequestUnknown     Code = "REQUEST.OUTCOME_UNKNOWN"
	RequestFields      Code = "REQUEST.FIELDS"
	RequestCancelled   Code = "REQUEST.CANCELLED"
	PolicyChanged      Code = "POLICY.CHANGED"
	IdempotencyUsed    Code = "REQUEST.IDEMPOTENCY"
	UploadMissing      Code = "UPLOAD.MISSING"
	VerifyFailed       Code = "SIGN.VERIFY_FAILED"
	SealKeyMissing     Code = "KEY.NO_SEAL_KEY"
	WorkspaceMissing   Code = "WORKSPACE.MISSING"
	WorkspaceExists    Code = "WORKSPACE.EXISTS"
	WorkspaceMalformed Code = "WORKSPACE.MALFORMED"
	WorkspaceLocked    Code = "WORKSPACE.LOCKED"
	WorkspaceReadOnly  Code = "WORKSPACE.UNWRITABLE"
	FormatMismatch     Code = "IMG.FORMAT_MISMATCH"
)

var table = []Entry{
	{Internal, "fault of the program", http.StatusInternalServerError, ExitError, "Firmseal met something it did not expect. The server's log has the cause under the same request id; please report it."},
	{Usage, "wrong usage", http.StatusBadRequest, ExitUsage, "The command line or its options are wrong. Add --help to the command."},
	{NotFound, "no such thing", http.StatusNotFound, ExitNotFound, "The name or id is not known in this workspace or project."},
	{Unavailable, "temporarily unavailable", http.StatusServiceUnavailable, ExitTemporary, "A part that Firmseal needs does not answer now. Retry later; nothing was lost."},
	{Conflict, "conflict", http.StatusConflict, ExitError, "The thing exists already, or was changed by somebody else meanwhile."},
	{BadRequest, "malformed request", http.StatusBadRequest, ExitUsage, "The request does not have the form that /openapi.json describes."},
	{TooLarge, "too large", http.StatusRequestEntityTooLarge, ExitError, "The input is larger than the stated limit."},
	{TooSlow, "too slow", http.StatusRequestTimeout, ExitTemporary, "The body of the request stopped coming, or came too slowly, and the connection was given up. Nothing of it was taken. Send it again; an upload goes on where it was."},
	{BadMethod, "method not allowed", http.StatusMethodNotAllowed, ExitUsage, "The path exists and takes other HTTP methods: see the Allow header and /openapi.json."},
	{Unauthorized, "not logged in", http.StatusUnauthorized, ExitForbidden, "Send a valid API token: FIRMSEAL_TOKEN, or --token-file."},
	{Forbidden, "not allowed", http.StatusForbidden, ExitForbidden, "The token lacks the scope or project for this operation."},

	{DBURL, "database URL", http.StatusInternalServerError, ExitUsage, "The database is named by sqlite:PATH or postgres://USER@HOST/NAME."},
	{DBOpen, "database cannot be opened", http.StatusServiceUnavailable, ExitTemporary, "The file cannot be opened, or the server does not answer. Nothing was changed."},
	{DBNewer, "database of a newer version", http.StatusInternalServerError, ExitGate, "A newer Firmseal has changed the schema. Run that version; a schema does not go back."},
	{DBNotDurable, "database is not durable", http.StatusInternalServerError, ExitGate, "The database would answer before a change survives a power cut, so that an accepted request could be lost. Firmseal does not run on it."},
	{DBFailed, "disk failed", http.StatusServiceUnavailable, ExitTemporary, "The disk failed while a change was made durable. Nothing more is written until the server is restarted and has read what is there."},

	{BlobDigest, "bytes do not have the named digest", http.StatusUnprocessableEntity, ExitRefused, "What arrived is not what was announced. The upload was thrown away; start it again."},
	{BlobOffset, "upload continues elsewhere", http.StatusConflict, ExitTemporary, "The part does not begin where the stored bytes end. Ask for the offset and go on from there."},
	{BlobCorrupt, "stored bytes are damaged", http.StatusInternalServerError, ExitError, "A stored file does not have the digest that it is named by. Restore it from a backup or upload it again; nothing made from it was released."},
	{BlobSize, "wrong size", http.StatusUnprocessableEntity, ExitUsage, "The size of an upload is announced when it begins, above zero and below the limit, and what is sent may not exceed it."},
	{BlobFull, "no space left", http.StatusInsufficientStorage, ExitTemporary, "The disk that holds the images is full. What arrived so far is kept; make room and go on."},

	{ImageUnknownFormat, "unknown image format", http.StatusUnprocessableEntity, ExitError, "No format recognises these bytes. Name one with --format, or sign detached with --format raw."},
	{ImageMalformed, "malformed image", http.StatusUnprocessableEntity, ExitRefused, "A field of the image contradicts another or the format's rules; the finding names the byte range."},
	{ImageTruncated, "truncated image", http.StatusUnprocessableEntity, ExitRefused, "The image ends before a length in it says. It was cut in transfer, or the length lies."},
	{ImageOptions, "wrong options for this format", http.StatusUnprocessableEntity, ExitUsage, "An option of the profile does not fit the format or the image."},
	{ImageNoRoom, "no room in the image", http.StatusUnprocessableEntity, ExitError, "The signature or its fields do not fit into the slot or area that the options state."},
	{ImageAlreadySigned, "already signed", http.StatusUnprocessableEntity, ExitGate, "The image carries a signature. Sign the unsigned build, or ask to replace it."},
	{SigMissing, "no signature", http.StatusUnprocessableEntity, ExitRefused, "There is no signature where this verifier looks for one."},
	{SigInvalid, "signature does not match the content", http.StatusUnprocessableEntity, ExitRefused, "The signed bytes were changed after signing, or the signature belongs to another image."},
	{SigEncoding, "signature in the wrong encoding", http.StatusUnprocessableEntity, ExitRefused, "The signature is not in the encoding that this verifier reads (DER, raw r||s, length)."},
	{SigCoverage, "bytes outside the signature", http.StatusUnprocessableEntity, ExitRefused, "Bytes that the device uses are not covered by the signature."},
	{TrustAnchorMissing, "trust anchor missing", http.StatusUnprocessableEntity, ExitRefused, "The image is signed by a key that this verifier does not trust."},
	{TrustNotEnforced, "verification not enforced", http.StatusUnprocessableEntity, ExitRefused, "The verifier would run this image without checking a signature."},
	{TargetCapability, "verifier cannot do this", http.StatusUnprocessableEntity, ExitRefused, "The signature is right, but this verifier or version lacks the algorithm or feature."},
	{AlgWeak, "weak algorithm or parameter", http.StatusUnprocessableEntity, ExitRefused, "RSA below 2048 bits, a small exponent, SHA-1 and MD5 are refused."},
	{AlgUnsupported, "algorithm not supported here", http.StatusUnprocessableEntity, ExitError, "This format, verifier or key backend cannot use that algorithm; the message lists those it can."},

	{RollbackCounterMissing, "no security counter", http.StatusUnprocessableEntity, ExitRefused, "The target checks a security counter and the image has none. Sign it with one."},

	// root: what a device can meet while it checks a release.
	{firmseal.CodeSealMissing, "no seal", http.StatusUnprocessableEntity, ExitRefused, "There is no .seal file. A checksum shows that nothing was changed since it was made, not who made it: integrity only, no signer. Fetch the .seal file from where the release was published."},
	{firmseal.CodeEnvelopeMalformed, "seal cannot be read", http.StatusUnprocessableEntity, ExitRefused, "The .seal file or the statement in it is not in the form of docs/SPEC-SEAL.md: cut off, duplicate members, wrong types. Nothing in it can be believed. Fetch it again."},
	{firmseal.CodeEnvelopeTooLarge, "file too large", http.StatusUnprocessableEntity, ExitRefused, "The .seal or .tlog-proof file is larger than the specification allows. It was not written by Firmseal."},
	{firmseal.CodeSealType, "not a firmware release", http.StatusUnprocessableEntity, ExitRefused, "The envelope is well formed but says something else than a firmware release: a provenance or SBOM attestation, or a newer predicate than this Firmseal knows."},
	{firmseal.CodeSealUntrusted, "sealed by unknown keys", http.StatusUnprocessableEntity, ExitRefused, "No key of the trust root has sealed this release. Either the trust root is older than the seal key, or the release is not from its maker."},
	{firmseal.CodeSealThreshold, "too few keys have sealed", http.StatusUnprocessableEntity, ExitRefused, "The trust root asks for more distinct keys than have sealed this release. Emergency releases have a threshold of their own."},
	{firmseal.CodeSealInvalid, "metadata or seal was changed", http.StatusUnprocessableEntity, ExitRefused, "A trusted key has signed, but not these bytes: the release statement (the metadata) or the signature was changed. The image was not looked at. Fetch the .seal file again."},
	{firmseal.CodeImageMismatch, "image was changed", http.StatusUnprocessableEntity, ExitRefused, "The image's bytes do not have the hash that was signed. Where a seal names that hash, the seal is right: the image was changed, its metadata was not. Fetch the image again."},
	{firmseal.CodeImageSignature, "signature file was changed", http.StatusUnprocessableEntity, ExitRefused, "The detached signature file is not the one that the seal names, or the release has none. Fetch it again."},
	{firmseal.CodeProofMissing, "no log proof", http.StatusUnprocessableEntity, ExitRefused, "The trust root demands proof that the release is in the log. Fetch the .tlog-proof file from where the release was published."},
	{firmseal.CodeProofMalformed, "log proof cannot be read", http.StatusUnprocessableEntity, ExitRefused, "The .tlog-proof file is not in the form of c2sp.org/tlog-proof, or carries no log entry. Fetch it again."},
	{firmseal.CodeLeafMalformed, "log entry cannot be read", http.StatusUnprocessableEntity, ExitRefused, "An entry of the log is not in the form that Firmseal writes."},
	{firmseal.CodeProofInvalid, "log proof does not hold", http.StatusUnprocessableEntity, ExitRefused, "The proof does not lead from the log entry to the signed checkpoint: the entry, the index or a hash was changed."},
	{firmseal.CodeProofOtherSeal, "log proof of another release", http.StatusUnprocessableEntity, ExitRefused, "The proof is right, but the log entry is about another statement, request, policy or file. The .seal and .tlog-proof files do not belong together."},
	{firmseal.CodeCheckpointUntrusted, "checkpoint of an unknown log", http.StatusUnprocessableEntity, ExitRefused, "The checkpoint is not signed by the log that the trust root names, or was changed."},
	{firmseal.CodeEnvironment, "wrong environment", http.StatusUnprocessableEntity, ExitRefused, "A test release or key where production is demanded, or the reverse. Keys and releases belong to one environment and never cross."},
	{firmseal.CodeProduct, "release of another product", http.StatusUnprocessableEntity, ExitRefused, "The seal is right, but the release is for another product than the one that was demanded."},
	{firmseal.CodeHardware, "not for this hardware", http.StatusUnprocessableEntity, ExitRefused, "The seal is right, but the release does not name this hardware id."},
	{firmseal.CodeRollback, "security counter too low", http.StatusUnprocessableEntity, ExitRefused, "The security counter of the release or image is below the device's: installing it would bring a fixed hole back. The counter never goes down, not even in an emergency."},
	{firmseal.CodeEmergencyCounter, "emergency does not raise the counter", http.StatusUnprocessableEntity, ExitRefused, "An emergency release may go back in version, and for that its security counter must be above the device's."},
	{firmseal.CodeVersionOrder, "version is older", http.StatusUnprocessableEntity, ExitRefused, "The release's version is below the one that the device runs. Only an emergency release may go back."},
	{firmseal.CodeVersionFloor, "update in steps", http.StatusUnprocessableEntity, ExitRefused, "The release can only follow a minimum version, and the device runs less. Install an intermediate release first."},
	{firmseal.CodeDeviceVersion, "device's version not known", http.StatusUnprocessableEntity, ExitRefused, "The release cannot be compared with the device's version, because that is missing or no semantic version."},
	{firmseal.CodeTrustRootMalformed, "trust root cannot be used", http.StatusUnprocessableEntity, ExitRefused, "The trust root file is not in the form of docs/SPEC-SEAL.md, names a key twice, or asks for more keys than it has."},
	{firmseal.CodeProductUntrusted, "trust root of another product", http.StatusUnprocessableEntity, ExitRefused, "The trust root lists the products that it speaks for, and this release's is not among them."},
	{ImageNotFirmware, "not a firmware image", http.StatusUnprocessableEntity, ExitGate, "The file is a package, container or archive that another tool signs and checks. A detached signature protects its transport only: no bootloader reads it."},

	{KeyLocked, "key is locked", http.StatusServiceUnavailable, ExitTemporary, "The key file is encrypted and no passphrase or identity opened it."},
	{KeyExists, "key exists", http.StatusConflict, ExitError, "A key of that name exists; names are never reused."},
	{KeyNotFound, "no such key", http.StatusNotFound, ExitNotFound, "No key of that name in this project: firmseal key list."},
	{KeyMalformed, "key cannot be read", http.StatusUnprocessableEntity, ExitError, "The key file or public key is not in a form that Firmseal reads."},
	{KeyRetired, "key is retired", http.StatusConflict, ExitPolicy, "A retired key signs nothing more."},
	{KeyBinding, "key is bound to something else", http.StatusUnprocessableEntity, ExitPolicy, "A key is bound at creation to purpose, environment, product and format, and signs for nothing else."},
	{KeyTicket, "ticket refused", http.StatusUnprocessableEntity, ExitError, "The key was asked to sign without a valid one-use ticket whose intent is in the log."},
	{KeyUnavailable, "key backend unavailable", http.StatusServiceUnavailable, ExitTemporary, "The backend that holds the key does not answer. The request keeps its place; retry later."},

	{PolicyProfile, "no such profile in the policy", http.StatusUnprocessableEntity, ExitPolicy, "The request names a profile that the policy in force does not have: firmseal policy show."},
	{PolicyProduct, "profile is for another product", http.StatusUnprocessableEntity, ExitPolicy, "A profile signs for one product. Use that product's profile."},
	{PolicyFormat, "profile is for another format", http.StatusUnprocessableEntity, ExitPolicy, "A profile signs one image format. Use the profile of this format."},
	{PolicyVersion, "version is not usable", http.StatusUnprocessableEntity, ExitPolicy, "Versions follow Semantic Versioning 2.0: MAJOR.MINOR.PATCH, with -PRERELEASE and +BUILD where wanted. A minimum version is not above the version itself."},
	{PolicyOlder, "version is below the last release", http.StatusConflict, ExitPolicy, "A newer version was released for this hardware already. Raise the version. A profile for maintenance branches says allow_older_versions; an emergency release may go back."},
	{PolicyMetadata, "required metadata is missing", http.StatusUnprocessableEntity, ExitPolicy, "The profile requires a field that the request does not have; the message names it."},
	{PolicyCounter, "security counter is below the last release", http.StatusConflict, ExitPolicy, "The security counter never goes down: a device that has seen the higher one would refuse this image. Raise the counter."},
	{PolicyEmergency, "emergency release needs a higher counter", http.StatusConflict, ExitPolicy, "An emergency release may go back in version, and therefore must have a security counter strictly above the last release's."},
	{PolicyUnseen, "signing unseen bytes is not allowed", http.StatusUnprocessableEntity, ExitPolicy, "Only a digest was sent, and the profile does not say bytes_unseen: true. Upload the image."},
	{PolicyClaims, "image says something else than the request", http.StatusUnprocessableEntity, ExitPolicy, "The version, security counter, product or hardware ids inside the image differ from the request's. One of the two is a mistake."},
	{PolicyKey, "key does not fit the profile", http.StatusUnprocessableEntity, ExitPolicy, "A key signs for the purpose, environment, product and format that it was created for. Name the right key in the profile, or make one: firmseal key create."},
	{PolicyRule, "a rule of the policy says no", http.StatusUnprocessableEntity, ExitPolicy, "The rule's own words are in the message. Try changes without signing: firmseal policy test."},

	{VersionTaken, "version is taken", http.StatusConflict, ExitPolicy, "A product, environment, hardware id, variant and version name one image for ever. Raise the version."},
	{PolicyMissing, "no policy is in force", http.StatusConflict, ExitPolicy, "Nothing is signed before a policy says what may be: firmseal policy apply FILE."},
	{PolicyMalformed, "policy document cannot be used", http.StatusUnprocessableEntity, ExitUsage, "The document has an unknown key, a wrong type or a check that does not compile; the message points at the place."},
	{StateAltered, "stored state was altered", http.StatusConflict, ExitError, "A row of the database is not what the log and the keys say it was. Nothing was signed. Find out who wrote to the database: firmseal log verify."},
	{RequestState, "request is not in that state", http.StatusConflict, ExitGate, "The operation does not fit the request's state: firmseal request show ID."},
	{RequestUnknown, "outcome of a key use is unknown", http.StatusConflict, ExitGate, "The server stopped, or the key backend failed, while a key was in use. The key may have signed; nothing was released. After looking at the key's own records: firmseal request resume ID, or firmseal request cancel ID."},
	{RequestCancelled, "request was cancelled", http.StatusConflict, ExitError, "A person ended the request before it was final; nothing was released. Send a new one."},
	{PolicyChanged, "policy changed meanwhile", http.StatusConflict, ExitPolicy, "The profile was changed after the request was made; what was decided on is no longer what would be signed. Send the request again."},
	{RequestFields, "metadata is missing or wrong", http.StatusUnprocessableEntity, ExitUsage, "Product, version, hardware ids and security counter are typed and required; the message names the field."},
	{IdempotencyUsed, "idempotency key was used for another request", http.StatusConflict, ExitError, "The same Idempotency-Key came with another body. Use a new key for a new request."},
	{UploadMissing, "image is not uploaded", http.StatusConflict, ExitGate, "The bytes that the request names are not complete in the store. Upload them first; firmseal sign does."},
	{VerifyFailed, "finished image did not verify", http.StatusInternalServerError, ExitRefused, "The signed image was refused by Firmseal's own independent verifier, as the device would refuse it. Nothing was released. The finding says which check failed; a wrong key in the profile or target is the usual cause."},
	{SealKeyMissing, "no seal key", http.StatusConflict, ExitGate, "No active seal key for this environment: firmseal key create NAME --purpose seal --environment ENV."},
	{WorkspaceMissing, "no workspace here", http.StatusNotFound, ExitNotFound, "This command works on a workspace directory (.firmseal, found upward from here) or on a server (--server URL). firmseal init makes a workspace."},
	{WorkspaceExists, "there is a workspace already", http.StatusConflict, ExitError, "firmseal init never overwrites a workspace: its keys and log would be lost."},
	{WorkspaceMalformed, "workspace configuration cannot be read", http.StatusUnprocessableEntity, ExitUsage, "config.yaml has an unknown or missing key; the message points at the place."},
	{WorkspaceReadOnly, "workspace cannot be written", http.StatusInternalServerError, ExitError, "The directory or the disk does not take the workspace's files: look at who may write there, and at the space that is left. Running the command again does not help before that."},
	{WorkspaceLocked, "workspace is in use", http.StatusServiceUnavailable, ExitTemporary, "One process at a time works on an embedded workspace. Wait for it, or talk to its server with --server URL."},
	{FormatMismatch, "image is of another format", http.StatusUnprocessableEntity, ExitUsage, "The profile's format does not recognise the image: another profile was meant, or another file."},

	{LogBehind, "database is older than its log", http.StatusServiceUnavailable, ExitGate, "The second place has seen a larger log than the database holds: the database was restored from a backup or copied. Going on would show the world two logs. Bring back the newest database, or begin a new log under a new origin. Until then nothing is signed."},
	{LogForked, "the log has two histories", http.StatusServiceUnavailable, ExitGate, "The second place and the database disagree about the same leaves: a copy of the workspace went on by itself, or the database was edited. Nothing is signed. firmseal log verify names the first leaf that was changed, where the database itself can tell."},
	{LogPlaceMissing, "the log's second place is missing", http.StatusServiceUnavailable, ExitGate, "The file that remembers the last checkpoint is gone, so nobody can tell whether this database is the newest. Bring the file back. If it is lost for good and the database is known to be the newest: firmseal log recover."},
	{LogPlace, "second place does not answer", http.StatusServiceUnavailable, ExitTemporary, "The file that remembers the last checkpoint cannot be read or written: a full disk, or rights. Leaves are safe in the database and are included once it answers again."},
	{LogAltered, "the log in the database was altered", http.StatusConflict, ExitRefused, "A row of the log is not what was logged, so nothing is proven or signed from it. Find out who wrote to the database; firmseal log verify names the first leaf."},
	{LogLeaf, "leaf refused", http.StatusUnprocessableEntity, ExitError, "A log entry is too large or has no valid encoding."},
	{LogNotIncluded, "not in the log yet", http.StatusConflict, ExitTemporary, "The leaf or tree size lies beyond the published checkpoint. It is committed at most; ask again."},
	{LogClosed, "log is closed", http.StatusServiceUnavailable, ExitTemporary, "The server is stopping. What was committed is included after the next start."},
}

var byCode = func() map[Code]Entry {
	m := make(map[Code]Entry, len(table))
	for _, e := range table {
		m[e.Code] = e
	}
	return m
}()

// Lookup gives a code's row; an unknown code is shown like INTERNAL.
func Lookup(c Code) (Entry, bool) {
	e, ok := byCode[c]
	return e, ok
}

// All is the whole list, sorted by code.
func All() []Entry {
	out := append([]Entry(nil), table...)
	sort.Slice(out, func(i, j int) bool { return out[i].Code < out[j].Code })
	return out
}

// Exit is the process exit code of err: 0 for nil.
func Exit(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := Lookup(Of(err).Code); ok {
		return e.Exit
	}
	return ExitError
}

// Status is the HTTP status of err.
func Status(err error) int {
	if e, ok := Lookup(Of(err).Code); ok {
		return e.Status
	}
	return http.StatusInternalServerError
}
