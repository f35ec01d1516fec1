package terminal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
)

// WriteJSON writes v on one line. It escapes more than JSON asks for: all that cannot be seen. A program that reads the
// line gets the same strings.
func WriteJSON(w io.Writer, v any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	safe := make([]byte, 0, text.Len())
	for _, r := range text.String() {
		if r == '\n' || strconv.IsPrint(r) {
			safe = append(safe, string(r)...)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			safe = fmt.Appendf(safe, `\u%04x`, unit)
		}
	}
	_, err := w.Write(safe)
	return err
}
