package service

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Read fills a group from texts, by variable. It returns the first problem as a SettingError.
func Read(group any, texts map[string]string) error {
	err := env.ParseWithOptions(group, env.Options{Environment: texts, FuncMap: parsers()})
	failed := make(map[string]error)
	if all, ok := errors.AsType[env.AggregateError](err); ok {
		for _, one := range all.Errors {
			bad, ok := errors.AsType[env.ParseError](one)
			if !ok {
				return fmt.Errorf("reading settings: %w", one)
			}
			failed[bad.Name] = bad.Err
		}
	} else if err != nil {
		return fmt.Errorf("reading settings: %w", err)
	}
	for i, f := range Fields(group) {
		problem := failed[f.goName]
		if text, isSet := texts[f.Name]; isSet && text == "" && f.RejectsEmpty {
			problem = errors.New("must not be empty: give it a value, or unset it")
		}
		if problem == nil {
			problem = f.inRange(reflect.ValueOf(group).Elem().Field(i))
		}
		switch {
		case problem == nil:
		case f.secret:
			return settingError("%s: %w", f.Name, problem)
		default:
			return settingError("%s: %w, got %q", f.Name, problem, texts[f.Name])
		}
	}
	if c, ok := group.(interface{ check() error }); ok {
		return c.check()
	}
	return nil
}

// Field is one setting as its tags describe it.
type Field struct {
	Name        string // the variable
	Also        string // another spelling of it; empty without one
	Flag        string // without --
	Help        string
	Default     string
	Placeholder string // what --help calls the value
	Kind        reflect.Kind
	// RejectsEmpty says that a variable that is set but empty is an error, and not the same as one that is unset.
	RejectsEmpty bool

	goName   string
	min, max string
	secret   bool
}

// Fields describes the settings of a group, given a pointer to it.
func Fields(group any) []Field {
	t := reflect.TypeOf(group).Elem()
	fields := make([]Field, t.NumField())
	for i := range fields {
		f := t.Field(i)
		name := f.Tag.Get("env")
		fields[i] = Field{
			Name:        name,
			Also:        f.Tag.Get("also"),
			Flag:        strings.TrimPrefix(FlagName(name), "--"),
			Help:        f.Tag.Get("help"),
			Default:     f.Tag.Get("envDefault"),
			Placeholder: placeholder(f),
			Kind:        f.Type.Kind(),

			RejectsEmpty: f.Tag.Get("empty") == "rejected",

			goName: f.Name,
			min:    f.Tag.Get("min"),
			max:    f.Tag.Get("max"),
			secret: f.Tag.Get("secret") != "",
		}
	}
	return fields
}

// FlagName is the flag of a variable: --database-url.
func FlagName(variable string) string {
	return "--" + strings.ReplaceAll(strings.ToLower(variable), "_", "-")
}

// placeholder is what --help calls a field's value.
func placeholder(f reflect.StructField) string {
	if arg := f.Tag.Get("arg"); arg != "" {
		return arg
	}
	switch {
	case f.Type == reflect.TypeFor[time.Duration]():
		return "DURATION"
	case f.Type.Kind() == reflect.Bool:
		return ""
	default:
		return "NUMBER"
	}
}

// inRange checks a number or a duration against the field's min and max.
func (f Field) inRange(v reflect.Value) error {
	number := func(text string) float64 { n, _ := strconv.ParseFloat(text, 64); return n }
	if v.Type() == reflect.TypeFor[time.Duration]() {
		number = func(text string) float64 { d, _ := ParseDuration(text); return float64(d) }
	}
	var n float64
	switch {
	case f.min == "":
		return nil
	case v.CanInt():
		n = float64(v.Int())
	default:
		n = v.Float()
	}
	switch {
	case f.max == "" && !(n >= number(f.min)):
		return fmt.Errorf("must be at least %s", f.min)
	case f.max != "" && !(n >= number(f.min) && n <= number(f.max)):
		return fmt.Errorf("must be %s to %s", f.min, f.max)
	}
	return nil
}

// Groups are pointers to all groups of s. They are for tests, such as the one that holds the table of settings in
// deploy/README.md.
func Groups(s *Settings) []any {
	v := reflect.ValueOf(s).Elem()
	all := make([]any, v.NumField())
	for i := range all {
		all[i] = v.Field(i).Addr().Interface()
	}
	return all
}
