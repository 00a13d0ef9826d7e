package firmseal

import "errors"

// MaxLeaf is the most bytes that an entry of a C2SP tlog-tiles bundle can have.
const MaxLeaf = 1<<16 - 1

// A Leaf is one entry of the log. Its bytes are the RFC 8785 (JCS) encoding of
// this object; they are hashed as RFC 6962 leaves. A leaf holds ids and digests
// only: product names and versions stay in the records that the digests name,
// so that a log can be shown without showing them.
//
// Every number is an integer below 2^53. Unknown members must be ignored:
// leaves written by later versions stay readable.
type Leaf struct {
	V     int    `json:"v"`     // 1
	Type  string `json:"type"`  // one of the Leaf… constants
	Time  int64  `json:"time"`  // µs since 1970, UTC, by the writer's clock
	Actor string `json:"actor"` // who caused it, as "token:ID", "local:USER", "system"

	// Record is the hex SHA-256 of the record that this leaf commits to: for
	// sign.* the canonical request, for key.* the canonical key record, for
	// policy.apply the policy document, for token.* the token record.
	Record string `json:"record,omitempty"`

	// sign.* leaves.
	Request   string      `json:"request,omitempty"`   // request id
	Key       string      `json:"key,omitempty"`       // hex SHA-256 of the signing key's SubjectPublicKeyInfo
	Policy    string      `json:"policy,omitempty"`    // hex SHA-256 of the policy document that decided
	Decision  string      `json:"decision,omitempty"`  // "allow" or "deny", with Rule
	Rule      string      `json:"rule,omitempty"`      // the rule or built-in check that decided
	Attempt   int         `json:"attempt,omitempty"`   // 1, 2, … within the request
	Resumed   bool        `json:"resumed,omitempty"`   // a person asked for this attempt after an unknown outcome
	Inputs    []LeafInput `json:"inputs,omitempty"`    // sign.attempt: what the key is asked to sign
	Input     string      `json:"input,omitempty"`     // hex SHA-256 of the uploaded image
	Output    string      `json:"output,omitempty"`    // hex SHA-256 of the finished output
	Statement string      `json:"statement,omitempty"` // sign.outcome: hex SHA-256 of the release statement that the seal key will sign
	SealKey   string      `json:"seal_key,omitempty"`  // sign.outcome: the seal key's id
	Result    string      `json:"result,omitempty"`    // sign.outcome: "sealed", or "failed" with Code
	Code      Code        `json:"code,omitempty"`      // why it failed or was denied
	Unseen    bool        `json:"bytes_unseen,omitempty"`
	Session   string      `json:"session,omitempty"` // sign.attempt: hex SHA-256 of the session that the request keeps from its earlier rounds, if any

	// Subject names what an administrative change is about: a key's or token's
	// name or id, "policy".
	Subject string `json:"subject,omitempty"`
}

// LeafInput is one signature that an attempt may make.
type LeafInput struct {
	Slot   string `json:"slot"`
	Alg    string `json:"alg"`
	Kind   string `json:"kind"`   // "digest" or "message"
	SHA256 string `json:"sha256"` // hex SHA-256 of the input bytes, digest or message alike
}

// Leaf types.
const (
	LeafGenesis     = "log.genesis"  // index 0: the origin and the log key
	LeafRecover     = "log.recover"  // a lost second place was made anew: subject the origin, record the root that was adopted
	LeafRequest     = "sign.request" // a request was accepted or denied
	LeafIntent      = "sign.intent"  // the ticket was redeemed: policy, key state and counter were right in that transaction
	LeafAttempt     = "sign.attempt" // a key is about to be used
	LeafResume      = "sign.resume"  // a person let a request go on whose attempt has an unknown outcome
	LeafOutcome     = "sign.outcome" // the finished file was verified and may be sealed, or the request failed
	LeafKeyCreate   = "key.create"
	LeafKeyRetire   = "key.retire"
	LeafPolicyApply = "policy.apply"
	LeafTokenCreate = "token.create"
	LeafTokenRevoke = "token.revoke"
)

// ParseLeaf reads the bytes of a log entry. It is strict about the form and
// about members that it knows, and ignores others: leaves written by later
// versions stay readable. The error is LOG.LEAF_MALFORMED.
//
// What a member means together with others is not judged here.
func ParseLeaf(data []byte) (Leaf, error) {
	bad := func(err error) (Leaf, error) {
		return Leaf{}, refuse(CodeLeafMalformed, "the log entry cannot be read").seen("%v", err).
			next("fetch the proof again; if it stays so, compare the log with its witnesses: firmseal log verify")
	}
	if len(data) > MaxLeaf {
		return bad(errors.New("it is larger than an entry can be"))
	}
	m, err := parseJSON(data)
	if err != nil {
		return bad(err)
	}
	o := members{m, "", &err}
	l := Leaf{
		V: o.number("v"), Type: o.str("type"), Time: int64(o.integer("time")), Actor: o.str("actor"),
		Record: o.optStr("record"), Request: o.optStr("request"), Key: o.optStr("key"), Policy: o.optStr("policy"),
		Decision: o.optStr("decision"), Rule: o.optStr("rule"), Resumed: o.optBool("resumed"),
		Input: o.optStr("input"), Output: o.optStr("output"), Statement: o.optStr("statement"), SealKey: o.optStr("seal_key"),
		Session: o.optStr("session"), Result: o.optStr("result"), Code: Code(o.optStr("code")), Unseen: o.optBool("bytes_unseen"), Subject: o.optStr("subject"),
	}
	if o.has("attempt") {
		l.Attempt = o.number("attempt")
	}
	if o.has("inputs") {
		for _, in := range o.objects("inputs", MaxLeaf) {
			l.Inputs = append(l.Inputs, LeafInput{in.str("slot"), in.str("alg"), in.str("kind"), in.str("sha256")})
		}
	}
	if err != nil {
		return bad(err)
	}
	if l.V < 1 || l.Type == "" {
		return bad(errors.New("it has no version or no type"))
	}
	return l, nil
}
