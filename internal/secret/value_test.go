package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// Issue 16, Build 1: whatever prints a secret, or a type that holds one, shows no byte of it.
func TestNothingPrintsAValue(t *testing.T) {
	const hidden = "xyzzy-plugh-fnord"
	v := New(hidden)
	type holder struct {
		Shown  Value
		inside Value
		list   []Value
		by     map[string]Value
		deep   *Value
		traces Traces
	}
	h := holder{v, v, []Value{v}, map[string]Value{"a": v}, &v, NewTraces([]Value{v})}
	var all []string
	for _, verb := range "vTtbcdoOqxXUeEfFgGspw" {
		for _, flags := range []string{"", "+", "#", "-20", "010", " "} {
			for _, value := range []any{
				v, &v, h, &h, h.traces, &h.traces, []any{v, h}, map[string]any{"a": v}, errors.Join(fmt.Errorf("%v", v)),
			} {
				all = append(all, fmt.Sprintf("%"+flags+string(verb), value))
			}
		}
	}
	all = append(all, fmt.Sprint(v), fmt.Sprintln(h), v.String(), v.GoString())
	for _, value := range []any{v, &v, h, &h, map[Value]Value{v: v}} {
		if text, err := json.Marshal(value); err == nil {
			all = append(all, string(text))
		}
		if text, err := yaml.Marshal(value); err == nil {
			all = append(all, string(text))
		}
		if text, err := xml.Marshal(value); err == nil {
			all = append(all, string(text))
		}
		var b bytes.Buffer
		_ = gob.NewEncoder(&b).Encode(value) // it may not take every type
		log := zerolog.New(&b).With().Interface("with", value).Logger()
		log.Error().Interface("a", value).Any("b", value).Str("c", fmt.Sprint(value)).Msgf("%v %#v", value, value)
		log.Error().Stringer("d", v).Fields(map[string]any{"e": value}).Err(fmt.Errorf("%s", value)).Send()
		slog.New(slog.NewTextHandler(&b, nil)).Error("a", "b", value)
		slog.New(slog.NewJSONHandler(&b, nil)).Error("a", "b", value)
		all = append(all, b.String())
	}
	for _, text := range all {
		for i := range len(hidden) - 3 {
			require.NotContains(t, text, hidden[i:i+4])
			require.NotContains(t, text, fmt.Sprintf("%x", hidden[i:i+4]))
		}
	}
	require.Equal(t, `"[secret]"`, string(func() []byte { text, _ := json.Marshal(v); return text }()))
	require.Equal(t, hidden, v.Reveal())
	require.True(t, v.Equal(New(hidden)))
	require.False(t, v.Equal(New("hunter")))
	require.True(t, New("").IsZero())
	require.Empty(t, Value{}.Reveal())
	require.True(t, Value{}.Equal(New("")))
	require.False(t, v.IsZero())
}

func TestTraces(t *testing.T) {
	const hidden = "correct horse battery"
	traces := NewTraces([]Value{New("another secret"), New(hidden)})
	for before := range 4 { // each moves the groups of base64
		text := strings.Repeat("u", before) + hidden + strings.Repeat("!", before)
		require.True(t, traces.In(text))
		for _, encoded := range []string{
			base64.StdEncoding.EncodeToString([]byte(text)), base64.RawURLEncoding.EncodeToString([]byte(text)),
			hex.EncodeToString([]byte(text)), strings.ToUpper(text), url.QueryEscape(text), text[before+1:], text[:before+8],
		} {
			require.True(t, traces.In(encoded), encoded)
		}
		forms := Forms(hidden)
		require.True(t, slices.ContainsFunc(forms, func(form string) bool {
			return strings.Contains(base64.RawStdEncoding.EncodeToString([]byte(text)), form)
		}), before)
	}
	for _, text := range []string{"", "ann", "correct", "horse", "battery", "an operator of ours"} {
		require.False(t, traces.In(text), text)
	}
	require.False(t, Traces{}.In(hidden))
	require.False(t, NewTraces([]Value{New("short"), {}}).In("short"))
}
