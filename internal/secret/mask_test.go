package secret

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMask(t *testing.T) {
	t.Parallel()
	m := NewMask(New("hunter2-and-more"), New("hunter2"), New("abc"), Value{})
	for text, want := range map[string]string{
		"":                                    "",
		"nothing here, abc":                   "nothing here, abc",
		"hunter2-and-more, hunter2":           "[secret], [secret]",
		"HUNTER2-and-MORE":                    "[secret]",
		"hunter2hunter2":                      "[secret][secret]",
		"ünhunter2ü":                          "ün[secret]ü",
		"68756E74657232":                      "[secret]",
		"x%68unter2":                          Shown,
		`x\u0068unter2`:                       Shown,
		"x&#104;unter2":                       Shown,
		"x%2568unter2":                        Shown,
		"100 % of \\ and &amp; and %zz":       "100 % of \\ and &amp; and %zz",
		strings.Repeat("Aİ", 50) + " hunter2": strings.Repeat("Aİ", 50) + " [secret]",
	} {
		require.Equal(t, want, m.Hide(text, false), text)
		require.Equal(t, want, m.Hide(text, true), text)
	}
	require.Equal(t, "x hunter", m.Hide("x hunter", false))
	require.Equal(t, "x [secret]", m.Hide("x hunter", true))
	require.Equal(t, "x [secret]-and-", m.Hide("x hunter2-and-", false))
	require.Equal(t, "x hunt", m.Hide("x hunt", true), "a few letters are no secret")
	require.Equal(t, "hunter2", Mask{}.Hide("hunter2", true))
}
