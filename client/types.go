package client

import "encoding/json"

// The types of the HTTP API. The server's handlers use these very types, so
// that the document at /openapi.json, the server and this client cannot drift
// apart. Times are µs since 1970, UTC. Digests are lower-case hex SHA-256.

// APIVersion stands in every JSON answer of the CLI and API.
const APIVersion = "firmseal/v1"

// Problem is an RFC 9457 problem document: what, why and next, with the stable
// code.
type Problem struct {
	Type      string `json:"type" doc:"urn:firmseal:problem: and the code"`
	Title     string `json:"title" doc:"the code's title"`
	Status    int    `json:"status" doc:"HTTP status"`
	Detail    string `json:"detail" doc:"what happened, one sentence"`
	Code      string `json:"code" doc:"stable code; firmseal help CODE explains it"`
	Why       string `json:"why,omitempty" doc:"the values seen"`
	Next      string `json:"next,omitempty" doc:"a command to paste, or the next thing to do"`
	Retryable bool   `json:"retryable" doc:"the same request may succeed later"`
	RequestID string `json:"request_id,omitempty" doc:"id of this HTTP request, as in the server's log"`
}

// Upload is an image on its way in.
type Upload struct {
	SHA256   string `json:"sha256" pattern:"^[0-9a-f]{64}$" doc:"digest of the whole file"`
	Size     int64  `json:"size" minimum:"1" doc:"bytes of the whole file"`
	Offset   int64  `json:"offset" doc:"bytes that are durable; continue here"`
	Complete bool   `json:"complete" doc:"all bytes are there and hash to sha256"`
}

// UploadStart opens an upload, or finds it again.
type UploadStart struct {
	SHA256 string `json:"sha256" pattern:"^[0-9a-f]{64}$" doc:"digest of the whole file"`
	Size   int64  `json:"size" minimum:"1" doc:"bytes of the whole file"`
}

// File names stored bytes.
type File struct {
	Name   string `json:"name" doc:"file name"`
	SHA256 string `json:"sha256" doc:"digest"`
	Size   int64  `json:"size" doc:"bytes"`
}

// Input names the image of a request. Content carries it when it is small (at
// most 1 MiB); else it is uploaded before.
type Input struct {
	Name    string `json:"name,omitempty" maxLength:"255" doc:"file name; names the output too"`
	SHA256  string `json:"sha256,omitempty" doc:"digest; may be left out with content"`
	Size    int64  `json:"size,omitempty" doc:"bytes; may be left out with content"`
	Content []byte `json:"content,omitempty" doc:"the image itself, base64, at most 1 MiB"`
}

// Dependency is another product that must be at least at a version.
type Dependency struct {
	Product        string `json:"product" doc:"product name"`
	MinimumVersion string `json:"minimum_version" doc:"semantic version"`
}

// NewRequest asks for a signature.
type NewRequest struct {
	Profile         string            `json:"profile" doc:"profile of the policy in force"`
	Version         string            `json:"version" doc:"semantic version of the release, for people"`
	SecurityCounter *uint64           `json:"security_counter" doc:"security counter of the release, for enforcement; never below the last release's"`
	MinimumVersion  string            `json:"minimum_version,omitempty" doc:"a device must run at least this before"`
	HardwareIDs     []string          `json:"hardware_ids" doc:"boards that may run the image"`
	Variant         string            `json:"variant,omitempty" doc:"distinguishes images of one version for one board"`
	Dependencies    []Dependency      `json:"dependencies,omitempty" doc:"other products' minimum versions"`
	Emergency       bool              `json:"emergency,omitempty" doc:"waives the order of versions, never of counters"`
	BytesUnseen     bool              `json:"bytes_unseen,omitempty" doc:"sign the digest alone; needs a profile that allows it, and is marked everywhere"`
	Metadata        map[string]string `json:"metadata,omitempty" doc:"further facts that policy may require"`
	BuildID         string            `json:"build_id,omitempty" doc:"correlates source, CI, signature and rollout"`
	BuildFinished   int64             `json:"build_finished,omitempty" doc:"when the build ended, µs since 1970"`
	Input           Input             `json:"input" doc:"the image"`
}

// KeyRef names the key that fills a role of a format.
type KeyRef struct {
	Role string `json:"role" doc:"role in the format; image where it has but one"`
	Name string `json:"name" doc:"key name"`
	ID   string `json:"id" doc:"SHA-256 of the SubjectPublicKeyInfo"`
}

// Attempt is one permitted use of a key by a request.
type Attempt struct {
	N       int    `json:"n" doc:"number within the request"`
	Purpose string `json:"purpose" doc:"firmware or seal"`
	KeyID   string `json:"key_id" doc:"SHA-256 of the SubjectPublicKeyInfo"`
	State   string `json:"state" enum:"open,signed,failed,unknown,discarded" doc:"what became of it"`
	Resumed bool   `json:"resumed,omitempty" doc:"a person asked for it after an unknown outcome"`
	Opened  int64  `json:"opened" doc:"µs since 1970"`
	Closed  int64  `json:"closed,omitempty" doc:"µs since 1970"`
	Code    string `json:"code,omitempty" doc:"why it failed"`
}

// Request is a signing request as it stands.
type Request struct {
	ID              string            `json:"id" doc:"request id"`
	State           string            `json:"state" enum:"queued,signing,sealing,released,denied,failed,unknown" doc:"where it stands"`
	Problem         *Problem          `json:"problem,omitempty" doc:"why it was refused, or what it waits for"`
	Project         string            `json:"project" doc:"project"`
	Actor           string            `json:"actor" doc:"who asked"`
	Profile         string            `json:"profile" doc:"profile"`
	Product         string            `json:"product" doc:"product"`
	Environment     string            `json:"environment" enum:"test,production" doc:"environment"`
	Format          string            `json:"format" doc:"image format"`
	Version         string            `json:"version" doc:"version"`
	SecurityCounter uint64            `json:"security_counter" doc:"security counter"`
	MinimumVersion  string            `json:"minimum_version,omitempty" doc:"minimum version"`
	HardwareIDs     []string          `json:"hardware_ids" doc:"boards"`
	Variant         string            `json:"variant,omitempty" doc:"variant"`
	Emergency       bool              `json:"emergency,omitempty" doc:"emergency release"`
	BytesUnseen     bool              `json:"bytes_unseen,omitempty" doc:"signed by digest alone"`
	Metadata        map[string]string `json:"metadata,omitempty" doc:"metadata"`
	BuildID         string            `json:"build_id,omitempty" doc:"build id"`
	Input           File              `json:"input" doc:"the uploaded image"`
	Keys            []KeyRef          `json:"keys" doc:"signing keys"`
	Digest          string            `json:"digest" doc:"SHA-256 of the canonical request, which the log commits to"`
	Policy          string            `json:"policy" doc:"SHA-256 of the policy document that decided"`
	Attempts        []Attempt         `json:"attempts" doc:"uses of keys"`
	Output          string            `json:"output,omitempty" doc:"SHA-256 of the finished file"`
	Release         string            `json:"release,omitempty" doc:"release id, once released"`
	Created         int64             `json:"created" doc:"µs since 1970"`
	Updated         int64             `json:"updated" doc:"µs since 1970"`
}

// Release is a sealed release.
type Release struct {
	ID              string   `json:"id" doc:"release id"`
	Request         string   `json:"request" doc:"signing request"`
	Product         string   `json:"product" doc:"product"`
	Environment     string   `json:"environment" enum:"test,production" doc:"environment"`
	HardwareIDs     []string `json:"hardware_ids" doc:"boards"`
	Variant         string   `json:"variant,omitempty" doc:"variant"`
	Version         string   `json:"version" doc:"version"`
	SecurityCounter uint64   `json:"security_counter" doc:"security counter"`
	Format          string   `json:"format" doc:"image format"`
	Emergency       bool     `json:"emergency,omitempty" doc:"emergency release"`
	BytesUnseen     bool     `json:"bytes_unseen,omitempty" doc:"signed by digest alone"`
	BuildID         string   `json:"build_id,omitempty" doc:"build id"`
	Image           File     `json:"image" doc:"what a device installs"`
	Signature       *File    `json:"signature,omitempty" doc:"detached formats: the signature file"`
	LeafIndex       int64    `json:"leaf_index" doc:"index of its sign.outcome leaf"`
	Created         int64    `json:"created" doc:"µs since 1970"`
}

// Key is a key as the workspace knows it.
type Key struct {
	Name        string `json:"name" doc:"key name"`
	ID          string `json:"id" doc:"SHA-256 of the SubjectPublicKeyInfo"`
	URI         string `json:"uri" doc:"backend and name there"`
	Type        string `json:"type" doc:"key type"`
	SPKI        []byte `json:"spki" doc:"DER SubjectPublicKeyInfo"`
	Purpose     string `json:"purpose" enum:"firmware,seal,log" doc:"what it signs"`
	Environment string `json:"environment" enum:"test,production" doc:"environment"`
	Product     string `json:"product,omitempty" doc:"firmware keys: product"`
	Format      string `json:"format,omitempty" doc:"firmware keys: format"`
	State       string `json:"state" enum:"active,retired" doc:"retired keys sign nothing"`
	Created     int64  `json:"created" doc:"µs since 1970"`
	CreatedBy   string `json:"created_by" doc:"who made it"`
	Retired     int64  `json:"retired,omitempty" doc:"µs since 1970"`
	RetiredBy   string `json:"retired_by,omitempty" doc:"who retired it"`
}

// NewKey asks for a key.
type NewKey struct {
	Name        string `json:"name" doc:"name; never reused"`
	Backend     string `json:"backend,omitempty" doc:"backend scheme; soft if empty"`
	Type        string `json:"type,omitempty" enum:"p256,p384,ed25519,rsa2048,rsa3072,rsa4096" doc:"key type; empty: what suits the format best"`
	Purpose     string `json:"purpose" enum:"firmware,seal" doc:"what it will sign"`
	Environment string `json:"environment" enum:"test,production" doc:"environment; for ever"`
	Product     string `json:"product,omitempty" doc:"firmware keys: product; for ever"`
	Format      string `json:"format,omitempty" doc:"firmware keys: format; for ever"`
}

// Artifact is something to put on a device or into its build.
type Artifact struct {
	Name      string `json:"name" doc:"file name"`
	MediaType string `json:"media_type" doc:"media type"`
	Data      []byte `json:"data" doc:"content, base64"`
	Note      string `json:"note" doc:"where it goes"`
}

// Policy is an applied policy document.
type Policy struct {
	Seq       int64  `json:"seq" doc:"rising number"`
	Digest    string `json:"digest" doc:"SHA-256 of the document"`
	Document  string `json:"document" doc:"the YAML text"`
	Applied   int64  `json:"applied" doc:"µs since 1970"`
	AppliedBy string `json:"applied_by" doc:"who applied it"`
}

// Token is an API token without its secret.
type Token struct {
	ID      string   `json:"id" doc:"token id"`
	Name    string   `json:"name" doc:"what it is for"`
	Project string   `json:"project" doc:"project"`
	Scopes  []string `json:"scopes" doc:"what it may do"`
	Created int64    `json:"created" doc:"µs since 1970"`
	Expires int64    `json:"expires" doc:"µs since 1970"`
	Revoked int64    `json:"revoked,omitempty" doc:"µs since 1970"`
}

// NewToken asks for an API token.
type NewToken struct {
	Name   string   `json:"name" minLength:"1" maxLength:"100" doc:"what it is for"`
	Scopes []string `json:"scopes" minItems:"1" doc:"what it may do"`
	TTL    int64    `json:"ttl" minimum:"60" doc:"seconds until it expires"`
}

// CreatedToken is the only answer that ever holds a token's secret.
type CreatedToken struct {
	Token
	Secret string `json:"secret" doc:"send as Authorization: Bearer; shown once"`
}

// Leaf is a log entry with its place.
type Leaf struct {
	Index int64           `json:"index" doc:"place in the log"`
	Leaf  json.RawMessage `json:"leaf" doc:"the entry itself"`
}

// LogCheck is what a whole check of the log found.
type LogCheck struct {
	Size int64  `json:"size" doc:"leaves checked"`
	Root string `json:"root" doc:"root hash, hex"`
	OK   bool   `json:"ok" doc:"every leaf, tile, the checkpoint and the second place agree"`
}

// Event is a journal entry.
type Event struct {
	Seq     int64           `json:"seq" doc:"rising number"`
	Time    int64           `json:"time" doc:"µs since 1970"`
	Kind    string          `json:"kind" doc:"what happened"`
	Actor   string          `json:"actor" doc:"who caused it"`
	Subject string          `json:"subject" doc:"what it is about"`
	BuildID string          `json:"build_id,omitempty" doc:"build id"`
	Data    json.RawMessage `json:"data,omitempty" doc:"details"`
}

// Status is the health of a workspace.
type Status struct {
	Workspace string         `json:"workspace" doc:"workspace id"`
	Version   string         `json:"version" doc:"program version"`
	Database  string         `json:"database" doc:"sqlite or postgres"`
	Origin    string         `json:"origin" doc:"log origin"`
	LogSize   int64          `json:"log_size" doc:"leaves in the log"`
	LogVKey   string         `json:"log_vkey" doc:"log verifier key"`
	Requests  map[string]int `json:"requests" doc:"requests by state"`
	Releases  int            `json:"releases" doc:"releases"`
	Keys      int            `json:"keys" doc:"active keys"`
	Policy    string         `json:"policy,omitempty" doc:"SHA-256 of the policy in force"`
	Ready     bool           `json:"ready" doc:"a policy is in force and the log goes on; a profile may still lack its key, see findings"`
	Findings  []Finding      `json:"findings" doc:"what somebody should look at"`
}

// Health is the answer of a server that can do its work.
type Health struct {
	Status string `json:"status" enum:"ok" doc:"ok"`
}

// Finding is something that somebody should look at.
type Finding struct {
	Severity string `json:"severity" enum:"low,medium,high" doc:"how much it matters"`
	What     string `json:"what" doc:"one sentence"`
	Next     string `json:"next,omitempty" doc:"what to do"`
}

// Page is a page of a list; Next is empty on the last.
type Page[T any] struct {
	Items []T    `json:"items" doc:"the items"`
	Next  string `json:"next,omitempty" doc:"cursor of the next page: send as before (log: from; events: after)"`
}
