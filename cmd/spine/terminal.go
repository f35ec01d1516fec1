package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"golang.org/x/term"
	"golang.org/x/text/width"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/observe"
)

// Everything that webhooks, destinations and servers say is text from outside, and a
// terminal obeys what it is told: nothing of it is printed but by way of
// printable, word or writeJSON.

// printable escapes, as in Go, what cannot be seen: control characters, line
// ends, changes of writing direction.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// word makes s one word, which is quoted as in Go where it is not one as it
// stands.
func word(s string) string {
	if s == "" || strings.ContainsAny(s, ` "=`) || printable(s) != s {
		return strconv.Quote(s)
	}
	return s
}

// oneLine brings an error's text onto one line.
func oneLine(s string) string { return printable(strings.Join(strings.Fields(s), " ")) }

// longestDetail is how many characters are shown of what somebody says.
const longestDetail = 160

// cut shortens s to longestDetail.
func cut(s string) string {
	if runes := []rune(s); len(runes) > longestDetail {
		return string(runes[:longestDetail-1]) + "…"
	}
	return s
}

// writeJSON writes v on one line. Strings that hold what cannot be seen are
// escaped beyond what JSON asks for, which changes nothing for its reader.
func writeJSON(w io.Writer, v any) error {
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

// writeAnswer writes what a server answered: JSON on one line, and anything
// else as text on one line.
func writeAnswer(w io.Writer, answer []byte) error {
	switch {
	case len(answer) == 0:
		return nil
	case json.Valid(answer):
		return writeJSON(w, json.RawMessage(answer))
	}
	_, err := fmt.Fprintln(w, oneLine(string(answer)))
	return err
}

// colours paints text on a terminal, and leaves it alone elsewhere.
type colours bool

const (
	dim    = "2"
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// coloursFor is on where w is a terminal whose user does not object
// (https://no-color.org).
func coloursFor(w io.Writer, env environ) colours {
	return colours(observe.IsTerminal(w) && env["NO_COLOR"] == "" && env["TERM"] != "dumb")
}

func (on colours) paint(colour, text string) string {
	if !on || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// outcome is the colour of an audit row's success.
func outcome(success string) string {
	switch success {
	case "success":
		return green
	case "failure":
		return red
	default:
		return yellow
	}
}

// alarm is the colour of what is said of an audit row: only failures stand out.
func alarm(success string) string {
	if success == "failure" {
		return red
	}
	return ""
}

// terminalWidth is how many cells a line of the terminal w has: 80 where it does
// not say.
func terminalWidth(w io.Writer) int {
	if columns, _, ok := terminalSize(w); ok {
		return columns
	}
	return 80
}

// terminalSize asks the terminal w how large it is.
func terminalSize(w io.Writer) (columns, rows int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	columns, rows, err := term.GetSize(int(f.Fd()))
	return columns, rows, err == nil && columns > 0 && rows > 0
}

// cells is how much room printable text takes on a terminal, where some
// characters take two cells and some none.
func cells(s string) int {
	n := 0
	for _, r := range s {
		n += cellsOf(r)
	}
	return n
}

func cellsOf(r rune) int {
	switch kind := width.LookupRune(r).Kind(); {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case kind == width.EastAsianWide, kind == width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// padded fills s up to a number of cells.
func padded(s string, to int) string { return s + strings.Repeat(" ", max(0, to-cells(s))) }

// fitted is s where it takes at most room cells, and else its beginning.
func fitted(s string, room int) string {
	if cells(s) <= room {
		return s
	}
	taken := 0
	for i, r := range s {
		if taken += cellsOf(r); taken > room-1 {
			return s[:i] + strings.Repeat("…", min(1, max(0, room)))
		}
	}
	return s
}

// wrap breaks s into lines, at spaces where it can be: one of first cells and
// others of rest cells. There is at least one.
func wrap(s string, first, rest int) (lines []string) {
	first, rest = max(first, 8), max(rest, 8) // else a narrow terminal gets a character a line
	line, room := "", first
	end := func() {
		lines = append(lines, line)
		line, room = "", rest
	}
	for text := range strings.SplitSeq(s, " ") {
		if line != "" && cells(line)+1+cells(text) <= room {
			line += " " + text
			continue
		}
		if line != "" {
			end()
		}
		for _, r := range text {
			if cells(line)+cellsOf(r) > room {
				end()
			}
			line += string(r)
		}
	}
	return append(lines, line)
}

const clockLayout = "2006-01-02T15:04:05.000Z"

// clock shows a moment to the millisecond, in UTC.
func clock(t event.Timestamp) string {
	if t.Infinity != 0 {
		return t.String()
	}
	return t.Time.UTC().Format(clockLayout)
}

// span shows a duration with the digits that matter to a reader.
func span(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case abs < time.Second:
		return d.Round(time.Millisecond).String()
	case abs < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	case abs < 48*time.Hour: // 4m rather than 4m0s, 1h rather than 1h0m0s
		text := d.Round(time.Second).String()
		if short, ok := strings.CutSuffix(text, "m0s"); ok {
			text = short + "m"
		}
		if short, ok := strings.CutSuffix(text, "h0m"); ok {
			text = short + "h"
		}
		return text
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// fromNow shows how far a moment is from now: "in 3s", "3s ago".
func fromNow(t event.Timestamp, now time.Time) string {
	switch {
	case t.Infinity > 0:
		return "never"
	case t.Infinity < 0:
		return "always"
	case t.Time.After(now):
		return "in " + span(t.Time.Sub(now))
	default:
		return span(now.Sub(t.Time)) + " ago"
	}
}

// counted is a number with its noun, of which plural adds an s.
func counted(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.FormatInt(n, 10) + " " + noun
}

// auditDetails are an audit row's details.
type auditDetails map[string]json.RawMessage

func readDetails(text json.RawMessage) auditDetails {
	var d auditDetails
	if json.Unmarshal(text, &d) != nil {
		return auditDetails{"details": text} // a hand wrote something else than an object
	}
	return d
}

// text is a member as a string: the string that it is, or else its JSON text.
func (d auditDetails) text(name string) string {
	var s string
	if json.Unmarshal(d[name], &s) == nil {
		return s
	}
	return string(d[name])
}

// span is a member that counts milliseconds.
func (d auditDetails) span(name string) string {
	ms, err := strconv.ParseFloat(string(d[name]), 64)
	if err != nil {
		return d.text(name)
	}
	return span(time.Duration(ms * float64(time.Millisecond)))
}

// pairs shows the members as name=value, those first that a reader looks for.
// Some say nothing new to most readers; --json has them.
func (d auditDetails) pairs() string {
	first := []string{"attempt", "status", "duration_ms", "error", "answer", "delay_ms"}
	rank := func(name string) int {
		if i := slices.Index(first, name); i >= 0 {
			return i
		}
		return len(first)
	}
	names := slices.SortedFunc(maps.Keys(d), func(a, b string) int { return cmp.Or(rank(a)-rank(b), cmp.Compare(a, b)) })
	var shown []string
	for _, name := range names {
		value := d.text(name)
		if name == "lease" || name == "next_attempt_at" || name == "destination" && value == event.DefaultDestination {
			continue
		}
		if short, ok := strings.CutSuffix(name, "_ms"); ok {
			name, value = short, d.span(name)
		}
		shown = append(shown, word(name)+"="+word(cut(value)))
	}
	return strings.Join(shown, " ")
}
