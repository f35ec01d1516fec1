package command

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
)

// printSteps returns a function that writes steps for a pipe, a line each: time, event, action, details.
func printSteps(w io.Writer) func([]trail.Step) error {
	out := bufio.NewWriter(w)
	return func(steps []trail.Step) error {
		for i := range steps {
			s := &steps[i]
			words := []string{
				exactTime(s.Timestamp),
				eventName(s),
				terminal.Word(string(s.Action)),
				readDetails(s.Details).pairs(s.EventID != nil),
			}
			fmt.Fprintln(out, strings.TrimRight(strings.Join(words, " "), " "))
		}
		return out.Flush()
	}
}

// printStepsAsJSON returns a function that writes steps as JSON, one a line.
func printStepsAsJSON(w io.Writer) func([]trail.Step) error {
	out := bufio.NewWriter(w)
	return func(steps []trail.Step) error {
		for i := range steps {
			if err := terminal.WriteJSON(out, &steps[i]); err != nil {
				return err
			}
		}
		return out.Flush()
	}
}

// longestName is how wide the column of events grows: as wide as a UUID.
const longestName = 36

// narrowestSentence is the least room for a sentence beside its event. With less room, its further lines begin under
// the event.
const narrowestSentence = 40

// printSentences returns a function that tells a person of steps. The sentences are aligned, and wrapped on a terminal
// as wide as width says. A new day gets a line.
func printSentences(w io.Writer, width func() int, colours terminal.Colours) func([]trail.Step) error {
	const clockLayout = "15:04:05.000"
	const nameColumn = len(clockLayout) + len(" x ") // after the mark
	out := bufio.NewWriter(w)
	nameCells, day := 0, "" // nameCells is the widest name so far
	return func(steps []trail.Step) error {
		for i := range steps {
			nameCells = max(nameCells, min(terminal.Cells(eventName(&steps[i])), longestName))
		}
		for i := range steps {
			s := &steps[i]
			clock := exactTime(s.Timestamp)
			if date, rest, ok := strings.Cut(strings.TrimSuffix(clock, "Z"), "T"); ok {
				if clock = rest; date != day {
					day = date
					fmt.Fprintln(out, colours.Paint(terminal.Dim, day+" UTC"))
				}
			}
			name := terminal.Pad(eventName(s), nameCells)
			begin := nameColumn + terminal.Cells(name) + 1
			indent := begin
			if width()-begin < narrowestSentence {
				indent = nameColumn + 2
			}
			details := readDetails(s.Details)
			sentence, tone := stepSentence(s.Action, details, false), stepTone(s, details)
			lines := terminal.Wrap(sentence, width()-begin, width()-indent)
			colour := failureColour(tone)
			fmt.Fprintf(out, "%s %s %s %s\n", colours.Paint(terminal.Dim, terminal.Pad(clock, len(clockLayout))),
				colours.Paint(toneColour(tone), toneMark(tone)), colours.Paint(terminal.Bold, name),
				colours.Paint(colour, lines[0]))
			for _, line := range lines[1:] {
				fmt.Fprintf(out, "%*s%s\n", indent, "", colours.Paint(colour, line))
			}
		}
		return out.Flush()
	}
}
