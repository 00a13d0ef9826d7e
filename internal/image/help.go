package image

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// DescribeOptions lists the options of a struct that [DecodeOptions] fills, in
// the order of its fields, with a text for each from the format's table. It
// panics on an option without a text: an option that nobody explains is a bug
// of the format, and its own test meets it.
func DescribeOptions(v any, texts map[string]string) []OptionHelp {
	var out []OptionHelp
	describe(reflect.TypeOf(v), texts, &out)
	return out
}

func describe(t reflect.Type, texts map[string]string, out *[]OptionHelp) {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || slices.ContainsFunc(*out, func(o OptionHelp) bool { return o.Name == name }) {
			continue
		}
		text, ok := texts[name]
		if !ok {
			panic(fmt.Sprintf("image: option %s of %s has no text", name, t))
		}
		*out = append(*out, OptionHelp{Name: name, Type: optionType(f.Type), Text: text})
	}
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// optionType names a type as the writer of a policy sees it in YAML or JSON.
func optionType(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler) {
		return "number or text" // 512, "0x200", "auto"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	case reflect.Slice:
		return "list of " + optionType(t.Elem())
	case reflect.Map:
		return "map to " + optionType(t.Elem())
	case reflect.Struct:
		var names []string
		for f := range t.Fields() {
			names = append(names, strings.Split(f.Tag.Get("json"), ",")[0])
		}
		return "{" + strings.Join(names, ", ") + "}"
	}
	return "number"
}
