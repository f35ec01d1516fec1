package command

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/view"
)

// B3: however deep a sender nests a payload, showing it takes no more than a few times its size.
func TestPayloadsAreIndentedInProportion(t *testing.T) {
	require.Contains(t, payloadText(view.Content{Payload: []byte(`{"a":[1]}`)}), "\n    1\n")
	for _, elements := range []int{100, 5000, 500_000} {
		payload := strings.Repeat(`{"a":`, 508) + "[1" + strings.Repeat(",1", elements) + "]" + strings.Repeat("}", 508)
		text := payloadText(view.Content{Payload: []byte(payload)})
		require.LessOrEqual(t, len(text), mostBlanks*len(payload))
		require.Equal(t, payload, strings.Join(strings.Fields(strings.ReplaceAll(text, ": ", ":")), ""))
	}
}
