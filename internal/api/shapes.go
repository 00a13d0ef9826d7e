package api

import (
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
)

type body[T any] struct{ Body T }

func ok[T any](v T) *body[T] { return &body[T]{v} }

type list[T any] struct{ Body client.Page[T] }

// page gives up to limit items and the cursor of the next page.
func page[T, U any](in []T, limit int, id func(T) string, f func(T) U) *list[U] {
	out := &list[U]{}
	out.Body.Items = make([]U, 0, len(in))
	for _, v := range in {
		out.Body.Items = append(out.Body.Items, f(v))
	}
	if limit > 0 && len(in) == limit {
		out.Body.Next = id(in[len(in)-1])
	}
	return out
}

func all[T, U any](in []T, f func(T) U) *list[U] {
	return page(in, 0, func(T) string { return "" }, f)
}

// Paging is the query of a list.
type Paging struct {
	Before string `query:"before" doc:"the next of the previous page"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"items a page"`
}

type Waiting struct {
	Wait string `query:"wait" doc:"wait up to this long for the request to rest, as 30s; at most 2m"`
}

func (w Waiting) duration() (time.Duration, error) {
	if w.Wait == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(w.Wait)
	if err != nil || d < 0 {
		return 0, problem.New(problem.BadRequest, "wait=%q is not a duration", w.Wait).WithHint("write it as 30s")
	}
	return min(d, maxWait), nil
}
