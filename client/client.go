// Package client talks to Firmseal's HTTP API.
//
// The CLI is written over it and can do nothing that it cannot: without a
// server, the same Client runs over an http.RoundTripper that calls the API's
// handler in the process.
//
// Every refusal of the server is a [*Error] with the server's code, reason and
// next step. A transport failure is one with code UNAVAILABLE; the caller may
// repeat any call: uploads continue, and requests carry an idempotency key.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Error is a refusal by the server.
type Error struct{ Problem }

func (e *Error) Error() string {
	s := e.Code + ": " + e.Detail
	if e.Why != "" {
		s += ": " + e.Why
	}
	return s
}

// Client is safe for concurrent use.
type Client struct {
	// BaseURL is the server's address without a path: "https://seal.example.com".
	BaseURL string
	// Token is an API token; empty in-process.
	Token string
	// HTTP is the client to use; nil means http.DefaultClient.
	HTTP *http.Client
}

const (
	maxAnswer = 64 << 20 // bounds a JSON answer, in bytes
	chunk     = 4 << 20  // bytes of one upload call
	maxMoved  = 100      // how often an upload makes way for another of the same file
)

// call sends in as JSON (nil: no body) and decodes the answer into out (nil:
// drop it).
func (c *Client) call(ctx context.Context, method, path string, q url.Values, header http.Header, in, out any) error {
	return c.callHeader(ctx, method, path, q, header, in, out, nil)
}

// callHeader is call that also gives the answer's header, unless answered is nil.
func (c *Client) callHeader(ctx context.Context, method, path string, q url.Values, header http.Header, in, out any, answered *http.Header) error {
	var body io.Reader
	contentType := ""
	switch v := in.(type) {
	case nil:
	case rawBody:
		body, contentType = bytes.NewReader(v.data), v.mediaType
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		body, contentType = bytes.NewReader(b), "application/json"
	}
	res, err := c.do(ctx, method, path, q, header, contentType, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if answered != nil {
		*answered = res.Header
	}
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
		return err
	}
	if raw, ok := out.(*[]byte); ok {
		if *raw, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer+1)); len(*raw) > maxAnswer {
			return fmt.Errorf("the server's answer to %s %s is larger than %d bytes", method, path, maxAnswer)
		}
		return err
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		var cut net.Error
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &cut) {
			return c.silent(ctx, err)
		}
		return fmt.Errorf("decoding the server's answer to %s %s: %w", method, path, err)
	}
	return nil
}

type rawBody struct {
	mediaType string
	data      []byte
}

func (c *Client) do(ctx context.Context, method, path string, q url.Values, header http.Header, contentType string, body io.Reader) (*http.Response, error) {
	u := strings.TrimSuffix(c.BaseURL, "/") + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	res, err := h.Do(req)
	if err != nil {
		return nil, c.silent(ctx, err)
	}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the server's refusal: %w", err)
	}
	e := new(Error)
	if json.Unmarshal(b, &e.Problem) != nil || e.Code == "" {
		e.Problem = Problem{
			Code: "UNAVAILABLE", Status: res.StatusCode, Detail: "the server answered " + res.Status + " without saying why",
			Why: "something between here and Firmseal may have answered instead", Retryable: res.StatusCode >= 500,
		}
	}
	return nil, e
}

// silent is what a caller gets when no answer came, or a part of one.
func (c *Client) silent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &Error{Problem{
		Code: "UNAVAILABLE", Status: http.StatusServiceUnavailable, Title: "temporarily unavailable",
		Detail: "the server at " + c.BaseURL + " does not answer", Why: plain(err),
		Next: "check that firmseal serve runs there and that the address is right, and try again", Retryable: true,
	}}
}

// plain takes the address and method, which the message has already, off a
// transport error.
func plain(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

// Upload sends a file of which r's bytes hash to sha256, from where an earlier
// upload of it stopped. progress, if not nil, is called with the bytes that are
// durable.
func (c *Client) Upload(ctx context.Context, r io.ReaderAt, sha256 string, size int64, progress func(done int64)) error {
	var u Upload
	if err := c.call(ctx, http.MethodPost, "/api/v1/uploads", nil, nil, UploadStart{SHA256: sha256, Size: size}, &u); err != nil {
		return err
	}
	buf := make([]byte, max(0, min(chunk, size)))
	for moved := 0; !u.Complete; {
		at := u.Offset
		if at < 0 || at >= size {
			return fmt.Errorf("uploading: the server says that %d of %d bytes are there and not all", at, size)
		}
		n := min(int64(len(buf)), size-at)
		if got, err := r.ReadAt(buf[:n], at); int64(got) < n {
			return fmt.Errorf("reading the image: %w", err)
		}
		q := url.Values{"offset": {strconv.FormatInt(at, 10)}, "size": {strconv.FormatInt(size, 10)}}
		err := c.call(ctx, http.MethodPatch, "/api/v1/uploads/"+sha256, q, nil, rawBody{"application/octet-stream", buf[:n]}, &u)
		var refused *Error
		if errors.As(err, &refused) && refused.Code == "BLOB.OFFSET" && moved < maxMoved {
			// Somebody else uploads the same file: go on from where that is.
			moved++
			err = c.call(ctx, http.MethodPost, "/api/v1/uploads", nil, nil, UploadStart{SHA256: sha256, Size: size}, &u)
		} else if err == nil && !u.Complete && u.Offset <= at {
			return fmt.Errorf("uploading: the server took %d bytes and did not move from %d", n, at)
		}
		if err != nil {
			return err
		}
		if progress != nil {
			progress(u.Offset)
		}
	}
	return nil
}

// Sign submits a request and waits up to wait for it to rest. A denial is a
// request in state denied, not an error. An empty idempotency key is replaced
// by a random one, so that a repeated call by the transport is harmless.
func (c *Client) Sign(ctx context.Context, n NewRequest, idempotencyKey string, wait time.Duration) (Request, error) {
	r, _, err := c.SignAgain(ctx, n, idempotencyKey, wait)
	return r, err
}

// SignAgain is Sign for a caller that may have sent the same before: earlier
// says that the request is older than this call. The server tells by its own
// clock: ids begin with their time, and each call has one, X-Request-ID.
func (c *Client) SignAgain(ctx context.Context, n NewRequest, idempotencyKey string, wait time.Duration) (r Request, earlier bool, err error) {
	if idempotencyKey == "" {
		idempotencyKey = rand.Text()
	}
	var answered http.Header
	header := http.Header{"Idempotency-Key": {idempotencyKey}}
	err = c.callHeader(ctx, http.MethodPost, "/api/v1/requests", waitQuery(wait), header, n, &r, &answered)
	if err != nil {
		return r, false, err
	}
	return r, r.ID < answered.Get("X-Request-ID"), nil
}

func waitQuery(wait time.Duration) url.Values {
	if wait <= 0 {
		return nil
	}
	return url.Values{"wait": {wait.String()}}
}

// Request gives a request, after waiting up to wait for it to rest.
func (c *Client) Request(ctx context.Context, id string, wait time.Duration) (Request, error) {
	var r Request
	err := c.call(ctx, http.MethodGet, "/api/v1/requests/"+url.PathEscape(id), waitQuery(wait), nil, nil, &r)
	return r, err
}

// RequestQuery narrows Requests; empty members match all.
type RequestQuery struct {
	State   string
	BuildID string
	Before  string // Next of the previous page
	Limit   int
}

// Requests lists requests, newest first.
func (c *Client) Requests(ctx context.Context, rq RequestQuery) (Page[Request], error) {
	var p Page[Request]
	q := pageQuery("state", rq.State, rq.Before, rq.Limit)
	if rq.BuildID != "" {
		q.Set("build_id", rq.BuildID)
	}
	err := c.call(ctx, http.MethodGet, "/api/v1/requests", q, nil, nil, &p)
	return p, err
}

func pageQuery(name, value, before string, limit int) url.Values {
	q := url.Values{}
	if value != "" {
		q.Set(name, value)
	}
	if before != "" {
		q.Set("before", before)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return q
}

// Resume lets an unknown request go on; the new use of the key is logged as
// resumed.
func (c *Client) Resume(ctx context.Context, id string) (Request, error) {
	var r Request
	err := c.call(ctx, http.MethodPost, "/api/v1/requests/"+url.PathEscape(id)+"/resume", nil, nil, nil, &r)
	return r, err
}

// Cancel ends a request that is not final as failed, and frees its version.
func (c *Client) Cancel(ctx context.Context, id string) (Request, error) {
	var r Request
	err := c.call(ctx, http.MethodPost, "/api/v1/requests/"+url.PathEscape(id)+"/cancel", nil, nil, nil, &r)
	return r, err
}

// Release gives a release by its id or its request's.
func (c *Client) Release(ctx context.Context, id string) (Release, error) {
	var r Release
	err := c.call(ctx, http.MethodGet, "/api/v1/releases/"+url.PathEscape(id), nil, nil, nil, &r)
	return r, err
}

// Releases lists releases, newest first.
func (c *Client) Releases(ctx context.Context, product, before string, limit int) (Page[Release], error) {
	var p Page[Release]
	err := c.call(ctx, http.MethodGet, "/api/v1/releases", pageQuery("product", product, before, limit), nil, nil, &p)
	return p, err
}

// Part is a file of a release.
type Part string

const (
	PartImage     Part = "image"
	PartSignature Part = "signature"
	PartSeal      Part = "seal"
	PartProof     Part = "proof"
)

// Download writes a part of a release to w.
func (c *Client) Download(ctx context.Context, release string, part Part, w io.Writer) error {
	res, err := c.do(ctx, http.MethodGet, "/api/v1/releases/"+url.PathEscape(release)+"/"+string(part), nil, nil, "", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(w, res.Body)
	if err != nil {
		return fmt.Errorf("downloading the %s: %w", part, err)
	}
	// Over an http.RoundTripper of this process only the header has the length.
	want := res.ContentLength
	if h, err := strconv.ParseInt(res.Header.Get("Content-Length"), 10, 64); want < 0 && err == nil {
		want = h
	}
	if want >= 0 && n != want {
		return fmt.Errorf("downloading the %s: %w", part, io.ErrUnexpectedEOF)
	}
	return nil
}

// Keys lists keys by name.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var p Page[Key]
	err := c.call(ctx, http.MethodGet, "/api/v1/keys", nil, nil, nil, &p)
	return p.Items, err
}

// Key gives one key.
func (c *Client) Key(ctx context.Context, name string) (Key, error) {
	var k Key
	err := c.call(ctx, http.MethodGet, "/api/v1/keys/"+url.PathEscape(name), nil, nil, nil, &k)
	return k, err
}

// CreateKey makes a key.
func (c *Client) CreateKey(ctx context.Context, n NewKey) (Key, error) {
	var k Key
	err := c.call(ctx, http.MethodPost, "/api/v1/keys", nil, nil, n, &k)
	return k, err
}

// RetireKey ends a key.
func (c *Client) RetireKey(ctx context.Context, name string) (Key, error) {
	var k Key
	err := c.call(ctx, http.MethodPost, "/api/v1/keys/"+url.PathEscape(name)+"/retire", nil, nil, nil, &k)
	return k, err
}

// KeyTrust makes what a device must hold to accept a key's signatures. options
// are the format's, as JSON; nil for none.
func (c *Client) KeyTrust(ctx context.Context, name string, options json.RawMessage) ([]Artifact, error) {
	var p Page[Artifact]
	q := url.Values{}
	if len(options) > 0 {
		q.Set("options", string(options))
	}
	err := c.call(ctx, http.MethodGet, "/api/v1/keys/"+url.PathEscape(name)+"/trust", q, nil, nil, &p)
	return p.Items, err
}

// Policy gives the document in force.
func (c *Client) Policy(ctx context.Context) (Policy, error) {
	var p Policy
	err := c.call(ctx, http.MethodGet, "/api/v1/policy", nil, nil, nil, &p)
	return p, err
}

// ApplyPolicy puts a YAML document in force.
func (c *Client) ApplyPolicy(ctx context.Context, document []byte) (Policy, error) {
	var p Policy
	err := c.call(ctx, http.MethodPut, "/api/v1/policy", nil, nil, rawBody{"application/yaml", document}, &p)
	return p, err
}

// PolicyHistory gives all documents, newest first.
func (c *Client) PolicyHistory(ctx context.Context) ([]Policy, error) {
	var p Page[Policy]
	err := c.call(ctx, http.MethodGet, "/api/v1/policy/history", nil, nil, nil, &p)
	return p.Items, err
}

// Tokens lists API tokens.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	var p Page[Token]
	err := c.call(ctx, http.MethodGet, "/api/v1/tokens", nil, nil, nil, &p)
	return p.Items, err
}

// CreateToken makes an API token.
func (c *Client) CreateToken(ctx context.Context, n NewToken) (CreatedToken, error) {
	var t CreatedToken
	err := c.call(ctx, http.MethodPost, "/api/v1/tokens", nil, nil, n, &t)
	return t, err
}

// RevokeToken ends an API token.
func (c *Client) RevokeToken(ctx context.Context, id string) (Token, error) {
	var t Token
	err := c.call(ctx, http.MethodPost, "/api/v1/tokens/"+url.PathEscape(id)+"/revoke", nil, nil, nil, &t)
	return t, err
}

// LeafQuery narrows Leaves; empty members match all.
type LeafQuery struct {
	Type    string
	Request string
	From    *int64 // first index; nil: the last entries, or from the first with a filter
	Limit   int
}

// Leaves lists log entries in the log's order.
func (c *Client) Leaves(ctx context.Context, lq LeafQuery) (Page[Leaf], error) {
	q := pageQuery("type", lq.Type, "", lq.Limit)
	if lq.Request != "" {
		q.Set("request", lq.Request)
	}
	if lq.From != nil {
		q.Set("from", strconv.FormatInt(*lq.From, 10))
	}
	var p Page[Leaf]
	err := c.call(ctx, http.MethodGet, "/api/v1/log/leaves", q, nil, nil, &p)
	return p, err
}

// LeafProof gives the .tlog-proof of a leaf.
func (c *Client) LeafProof(ctx context.Context, index int64) ([]byte, error) {
	var b []byte
	err := c.call(ctx, http.MethodGet, "/api/v1/log/leaves/"+strconv.FormatInt(index, 10)+"/proof", nil, nil, nil, &b)
	return b, err
}

// Checkpoint gives the log's newest checkpoint.
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	var b []byte
	err := c.call(ctx, http.MethodGet, "/log/checkpoint", nil, nil, nil, &b)
	return b, err
}

// CheckLog verifies the server's log from its first leaf.
func (c *Client) CheckLog(ctx context.Context) (LogCheck, error) {
	var l LogCheck
	err := c.call(ctx, http.MethodPost, "/api/v1/log/check", nil, nil, nil, &l)
	return l, err
}

// TrustRoot gives the trust root file of the workspace.
func (c *Client) TrustRoot(ctx context.Context) ([]byte, error) {
	var b []byte
	err := c.call(ctx, http.MethodGet, "/api/v1/trustroot", nil, nil, nil, &b)
	return b, err
}

// Events lists journal entries after seq, oldest first.
func (c *Client) Events(ctx context.Context, after int64, limit int) (Page[Event], error) {
	q := url.Values{"after": {strconv.FormatInt(after, 10)}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var p Page[Event]
	err := c.call(ctx, http.MethodGet, "/api/v1/events", q, nil, nil, &p)
	return p, err
}

// Status gives the health of the workspace.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/api/v1/status", nil, nil, nil, &s)
	return s, err
}
