package policy

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"github.com/firmseal/firmseal"
)

// costLimit bounds one rule's evaluation: a comparison costs about 3, so a rule
// can look at thousands of values and ends in well under a millisecond.
const costLimit = 20_000

// What rules see. Counters are int: CEL's int and uint do not compare, and a
// counter is below 2^53.
type (
	requestView struct {
		Profile         string            `cel:"profile"`
		Product         string            `cel:"product"`
		Environment     string            `cel:"environment"`
		Format          string            `cel:"format"`
		Version         string            `cel:"version"`
		SecurityCounter int64             `cel:"security_counter"`
		HardwareIDs     []string          `cel:"hardware_ids"`
		Variant         string            `cel:"variant"`
		MinimumVersion  string            `cel:"minimum_version"`
		Emergency       bool              `cel:"emergency"`
		BytesUnseen     bool              `cel:"bytes_unseen"`
		Metadata        map[string]string `cel:"metadata"`
		BuildID         string            `cel:"build_id"`
		Size            int64             `cel:"size"`
	}
	actorView struct {
		ID      string   `cel:"id"`
		Project string   `cel:"project"`
		Scopes  []string `cel:"scopes"`
	}
	imageView struct {
		Version         string   `cel:"version"` // "" where the image does not say
		StatesCounter   bool     `cel:"states_counter"`
		SecurityCounter int64    `cel:"security_counter"` // 0 where it does not say
		Product         string   `cel:"product"`
		HardwareIDs     []string `cel:"hardware_ids"`
		Signed          bool     `cel:"signed"`
		SignedWith      []string `cel:"signed_with"`
	}
	lastView struct {
		Exists          bool   `cel:"exists"`
		Version         string `cel:"version"`
		SecurityCounter int64  `cel:"security_counter"`
	}
)

func environment() (*cel.Env, error) {
	return cel.NewEnv(
		ext.NativeTypes(reflect.TypeFor[requestView](), reflect.TypeFor[actorView](), reflect.TypeFor[imageView](), reflect.TypeFor[lastView](), ext.ParseStructTags(true)),
		cel.Variable("request", cel.ObjectType("policy.requestView")),
		cel.Variable("actor", cel.ObjectType("policy.actorView")),
		cel.Variable("image", cel.ObjectType("policy.imageView")),
		cel.Variable("last", cel.ObjectType("policy.lastView")),
		cel.Variable("now", cel.TimestampType),
		cel.Function("semver_less", cel.Overload("semver_less_string_string", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType,
			cel.BinaryBinding(semverLess))),
		cel.ParserExpressionSizeLimit(maxCheck),
		cel.ParserRecursionLimit(64),
		cel.ParserErrorRecoveryLimit(8),
		cel.ExpressionNodeLimit(2000),
		cel.RegexProgramSizeLimit(2000),
		cel.DefaultUTCTimeZone(true),
	)
}

func semverLess(a, b ref.Val) ref.Val {
	x, err := firmseal.ParseVersion(string(a.(types.String)))
	if err != nil {
		return types.NewErr("semver_less: %.80q is not a version", string(a.(types.String)))
	}
	y, err := firmseal.ParseVersion(string(b.(types.String)))
	if err != nil {
		return types.NewErr("semver_less: %.80q is not a version", string(b.(types.String)))
	}
	return types.Bool(x.Compare(y) < 0)
}

// compile makes a rule's program. An error is text for a person, with a caret
// under the place where the compiler knows it.
func compile(env *cel.Env, check string) (cel.Program, error) {
	if strings.TrimSpace(check) == "" {
		return nil, errors.New("it has no check")
	}
	if len(check) > maxCheck {
		return nil, fmt.Errorf("its check is longer than %d bytes", maxCheck)
	}
	a, issues := env.Compile(check)
	if issues.Err() != nil {
		return nil, errors.New(clip(issues.Err().Error(), 2000))
	}
	if a.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("its check gives %s, not a bool", a.OutputType())
	}
	// The order of a map differs from run to run, and with it which error is
	// met first and when the cost limit is reached.
	rep := a.NativeRep()
	var bad error
	celast.PreOrderVisit(rep.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.ComprehensionKind {
			return
		}
		if t := rep.GetType(e.AsComprehension().IterRange().ID()); t == nil || t.Kind() != types.ListKind {
			bad = errors.New("it goes through the members of a map; look one up instead: 'name' in request.metadata")
		}
	}))
	if bad != nil {
		return nil, bad
	}
	p, err := env.Program(a, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, errors.New(clip(err.Error(), 500))
	}
	return p, nil
}

// counter is u as CEL sees it; one that no release can have is the largest.
func counter(u uint64) int64 { return int64(min(u, 1<<53)) }

func (f *Facts) variables() map[string]any {
	r, i := &f.Request, &f.Image
	img := &imageView{Version: i.Version, Product: i.Product, HardwareIDs: i.HardwareIDs, Signed: i.Signed, SignedWith: i.SignedWith}
	if i.SecurityCounter != nil {
		img.StatesCounter, img.SecurityCounter = true, counter(*i.SecurityCounter)
	}
	now := f.Now
	if now.IsZero() {
		now = time.Unix(0, 0)
	}
	return map[string]any{
		"request": &requestView{
			r.Profile, r.Product, r.Environment, r.Format, r.Version, counter(r.SecurityCounter), r.HardwareIDs, r.Variant,
			r.MinimumVersion, r.Emergency, r.BytesUnseen, r.Metadata, r.BuildID, r.Size,
		},
		"actor": &actorView{f.Actor.ID, f.Actor.Project, f.Actor.Scopes},
		"image": img,
		"last":  &lastView{f.Last.Exists, f.Last.Version, counter(f.Last.SecurityCounter)},
		"now":   now.UTC(),
	}
}
