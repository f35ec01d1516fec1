package terminal

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTextIsMadePrintable(t *testing.T) {
	require.Equal(t, `a\x1b[2J\u202eb\n受`, Printable("a\x1b[2J\u202eb\n受"))
	require.Equal(t, "a\\t\nb", PrintableLines("a\t\nb"))
	require.Equal(t, `failed: a b\x1b`, OneLine("failed:\n\ta b\x1b"))
	require.Equal(
		t,
		[]string{"a", `"a b"`, `""`, `"a=b"`, `"a\a"`},
		[]string{Word("a"), Word("a b"), Word(""), Word("a=b"), Word("a\x07")},
	)
	require.Len(t, []rune(Shorten(strings.Repeat("ü", 200))), 160)
	require.Equal(t, "short", Shorten("short"))
	var out strings.Builder
	require.NoError(t, WriteJSON(&out, map[string]string{"a": "<\u202e\u009b>\n\U000e0001"}))
	escaped := out.String() // the escapes themselves count, not what they stand for
	same := escaped == `{"a":"<\u202e\u009b>\n\udb40\udc01"}`+"\n"
	require.True(t, same, escaped)
}
