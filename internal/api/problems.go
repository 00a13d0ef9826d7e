package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// refusal is a problem document as huma wants an error.
type refusal struct{ client.Problem }

func (r *refusal) Error() string                { return r.Detail }
func (r *refusal) GetStatus() int               { return r.Status }
func (r *refusal) ContentType(string) string    { return "application/problem+json" }
func (r *refusal) MarshalJSON() ([]byte, error) { return json.Marshal(r.Problem) }

// document is the RFC 9457 form of an error.
func document(ctx context.Context, p *problem.Error) client.Problem {
	e, _ := problem.Lookup(p.Code)
	if e.Status == 0 {
		e.Status = http.StatusInternalServerError
	}
	return client.Problem{
		Type: "urn:firmseal:problem:" + string(p.Code), Title: e.Title, Status: e.Status, Detail: p.What, Code: string(p.Code),
		Why: p.Why, Next: p.Next, Retryable: e.Exit == problem.ExitTemporary, RequestID: telemetry.Request(ctx),
	}
}

// refuse logs what the caller is not shown and gives what he is.
func (s *server) refuse(ctx context.Context, err error) error {
	p := problem.Of(err)
	if p.Code == problem.Internal {
		s.Logger.ErrorContext(ctx, "request failed", "error", err)
	}
	r := &refusal{document(ctx, p)}
	if r.Retryable {
		h := http.Header{"Retry-After": {strconv.Itoa(retryAfter)}}
		return huma.ErrorWithHeaders(r, h)
	}
	return r
}

// retryAfter is what a caller is told to wait, in seconds.
const retryAfter = 2

// write answers from a middleware.
func (s *server) write(hc huma.Context, err error) {
	p := document(hc.Context(), problem.Of(err))
	if p.Code == string(problem.Internal) {
		s.Logger.ErrorContext(hc.Context(), "request failed", "error", err)
	}
	if p.Status == http.StatusUnauthorized {
		hc.SetHeader("WWW-Authenticate", `Bearer realm="firmseal"`)
	}
	hc.SetHeader("Content-Type", "application/problem+json")
	hc.SetStatus(p.Status)
	b, _ := json.Marshal(p) // a struct of strings and numbers
	_, _ = hc.BodyWriter().Write(b)
}

func writeProblem(w http.ResponseWriter, p client.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	b, _ := json.Marshal(p) // a struct of strings and numbers
	_, _ = w.Write(b)
}

// humaProblems turns what huma itself refuses (a body that does not fit the
// document, a missing parameter) into our problems.
func humaProblems(hc huma.Context, status string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code := problem.BadRequest
	switch m.Status {
	case http.StatusRequestEntityTooLarge:
		code = problem.TooLarge
	case http.StatusRequestTimeout:
		p := problem.New(problem.TooSlow, "the body came too slowly").
			Seen("it brought nothing for %s, or less than %d bytes a second", bodyStall, bodyRate)
		hc.SetHeader("Retry-After", strconv.Itoa(retryAfter))
		return &refusal{document(hc.Context(), p)}, nil
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		code = problem.NotFound
	case http.StatusInternalServerError:
		code = problem.Internal
	}
	p := problem.New(code, "the request does not have the form that /openapi.json describes")
	if len(m.Errors) > 0 {
		d := m.Errors[0]
		p = p.Seen("%s: %s", d.Location, d.Message)
		if len(m.Errors) > 1 {
			p.Why += fmt.Sprintf(", and %d more", len(m.Errors)-1)
		}
	}
	doc := document(hc.Context(), p)
	if m.Status != 0 && code == problem.BadRequest {
		doc.Status = m.Status
	}
	return &refusal{doc}, nil
}
