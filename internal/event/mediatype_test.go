package event

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMediaType(t *testing.T) {
	for header, want := range map[string]string{
		"application/json":                   "application/json",
		" Application/JSON ; charset=utf-8":  "application/json",
		"application/json; utf-8":            "application/json",
		"application/json;":                  "application/json",
		"application/json, application/json": "application/json",
		`text/plain; a="b;c"`:                "text/plain",
		"; charset":                          "",
		"":                                   "",
	} {
		require.Equal(t, want, MediaType(header), header)
	}
}
