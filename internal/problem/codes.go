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
	Unauthorized Code = "AUTH.UNAUTHENTICATED"
	Forbidden    Code = "AUTH.FORBIDDEN"
)

// image and its formats.
const (
	ImageUnknownFormat Code = "IMG.UNKNOWN_FORMAT"
	ImageMalformed     Code = "IMG.MALFORMED"
	ImageTruncated          = firmseal.CodeImageTruncated
	ImageOptions       Code = "IMG.OPTIONS"
	ImageNoRoom        Code = "IMG.NO_ROOM"
	ImageAlreadySigned Code = "IMG.ALREADY_SIGNED"
	SigMissing         Code = "SIG.MISSING"
	SigInvalid         Code = "SIG.INVALID_CONTENT"
	SigEncoding        Code = "SIG.ENCODING"
	SigCoverage        Code = "SIG.COVERAGE"
	TrustAnchorMissing Code = "TRUST.ANCHOR_MISSING"
	TrustNotEnforced   Code = "TRUST.NOT_ENFORCED"
	TargetCapability   Code = "TARGET.UNSUPPORTED"
	AlgWeak                 = firmseal.CodeWeakAlgorithm
	AlgUnsupported     Code = "ALG.UNSUPPORTED"
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

// signing and release.
const (
	VersionTaken     Code = "POLICY.VERSION_TAKEN"
	PolicyMissing    Code = "POLICY.NONE"
	PolicyMalformed  Code = "POLICY.MALFORMED"
	StateAltered     Code = "STATE.ALTERED"
	RequestState     Code = "REQUEST.STATE"
	RequestUnknown   Code = "REQUEST.OUTCOME_UNKNOWN"
	RequestFields    Code = "REQUEST.FIELDS"
	RequestCancelled Code = "REQUEST.CANCELLED"
	PolicyChanged    Code = "POLICY.CHANGED"
	IdempotencyUsed  Code = "REQUEST.IDEMPOTENCY"
	UploadMissing    Code = "UPLOAD.MISSING"
	VerifyFailed     Code = "SIGN.VERIFY_FAILED"
	SealKeyMissing   Code = "KEY.NO_SEAL_KEY"
	FormatMismatch   Code = "IMG.FORMAT_MISMATCH"
)

var table = []Entry{
	{Internal, "fault of the program", http.StatusInternalServerError, ExitError, "Firmseal met something it did not expect. The server's log has the cause under the same request id; please report it."},
	{Usage, "wrong usage", http.StatusBadRequest, ExitUsage, "The command line or its options are wrong. Add --help to the command."},
	{NotFound, "no such thing", http.StatusNotFound, ExitNotFound, "The name or id is not known in this workspace or project."},
	{Unavailable, "temporarily unavailable", http.StatusServiceUnavailable, ExitTemporary, "A part that Firmseal needs does not answer now. Retry later; nothing was lost."},
	{Conflict, "conflict", http.StatusConflict, ExitError, "The thing exists already, or was changed by somebody else meanwhile."},
	{BadRequest, "malformed request", http.StatusBadRequest, ExitUsage, "The request does not have the form that /openapi.json describes."},
	{TooLarge, "too large", http.StatusRequestEntityTooLarge, ExitError, "The input is larger than the stated limit."},
	{Unauthorized, "not logged in", http.StatusUnauthorized, ExitForbidden, "Send a valid API token: FIRMSEAL_TOKEN, or --token-file."},
	{Forbidden, "not allowed", http.StatusForbidden, ExitForbidden, "The token lacks the scope or project for this operation."},

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
	{firmseal.CodeRollback, "rollback refused", http.StatusUnprocessableEntity, ExitRefused, "The release's security counter is below the one that the target has stored. Release with a higher counter."},
	{firmseal.CodeImageMismatch, "the image's bytes were changed", http.StatusUnprocessableEntity, ExitRefused, "The bytes do not have the hash that was signed. They were changed or damaged after signing: fetch them again."},

	{KeyLocked, "key is locked", http.StatusServiceUnavailable, ExitTemporary, "The key file is encrypted and no passphrase or identity opened it."},
	{KeyExists, "key exists", http.StatusConflict, ExitError, "A key of that name exists; names are never reused."},
	{KeyNotFound, "no such key", http.StatusNotFound, ExitNotFound, "No key of that name in this project: firmseal key list."},
	{KeyMalformed, "key cannot be read", http.StatusUnprocessableEntity, ExitError, "The key file or public key is not in a form that Firmseal reads."},
	{KeyRetired, "key is retired", http.StatusConflict, ExitPolicy, "A retired key signs nothing more."},
	{KeyBinding, "key is bound to something else", http.StatusUnprocessableEntity, ExitPolicy, "A key is bound at creation to purpose, environment, product and format, and signs for nothing else."},
	{KeyTicket, "ticket refused", http.StatusUnprocessableEntity, ExitError, "The key was asked to sign without a valid one-use ticket whose intent is in the log."},
	{KeyUnavailable, "key backend unavailable", http.StatusServiceUnavailable, ExitTemporary, "The backend that holds the key does not answer. The request keeps its place; retry later."},

	{VersionTaken, "version is taken", http.StatusConflict, ExitPolicy, "A product, environment, hardware id, variant and version name one image for ever. Raise the version."},
	{PolicyMissing, "no policy is in force", http.StatusConflict, ExitPolicy, "Nothing is signed before a policy says what may be: firmseal policy apply FILE."},
	{PolicyMalformed, "policy document cannot be used", http.StatusUnprocessableEntity, ExitUsage, "The document has an unknown key, a wrong type or a check that does not compile; the message points at the place."},
	{StateAltered, "stored state was altered", http.StatusConflict, ExitError, "A row of the database is not what the log and the keys say it was. Nothing was signed. Find out who wrote to the database: firmseal log verify."},
	{RequestState, "request is not in that state", http.StatusConflict, ExitGate, "The operation does not fit the request's state: firmseal request show ID."},
	{RequestUnknown, "outcome of a key use is unknown", http.StatusConflict, ExitGate, "The server stopped, or the key backend failed, while a key was in use. The key may have signed; nothing was released. After looking at the key's own records: firmseal request resume ID, or firmseal request cancel ID."},
	{RequestCancelled, "request was cancelled", http.StatusConflict, ExitError, "A person ended the request after its outcome was unknown. Send a new one."},
	{PolicyChanged, "policy changed meanwhile", http.StatusConflict, ExitPolicy, "The profile was changed after the request was made; what was decided on is no longer what would be signed. Send the request again."},
	{RequestFields, "metadata is missing or wrong", http.StatusUnprocessableEntity, ExitUsage, "Product, version, hardware ids and security counter are typed and required; the message names the field."},
	{IdempotencyUsed, "idempotency key was used for another request", http.StatusConflict, ExitError, "The same Idempotency-Key came with another body. Use a new key for a new request."},
	{UploadMissing, "image is not uploaded", http.StatusConflict, ExitGate, "The bytes that the request names are not complete in the store. Upload them first; firmseal sign does."},
	{VerifyFailed, "finished image did not verify", http.StatusInternalServerError, ExitRefused, "The signed image was refused by Firmseal's own independent verifier, as the device would refuse it. Nothing was released. The finding says which check failed; a wrong key in the profile or target is the usual cause."},
	{SealKeyMissing, "no seal key", http.StatusConflict, ExitGate, "No active seal key for this environment: firmseal key create NAME --purpose seal --environment ENV."},
	{FormatMismatch, "image is of another format", http.StatusUnprocessableEntity, ExitUsage, "The profile's format does not recognise the image: another profile was meant, or another file."},
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
