package source

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

const day = 24 * time.Hour

// ParseDuration reads a duration as settings have it. It is a number of seconds (30, 0.5), Go's form (500ms, 1h30m), or
// a number of days of 24 hours each (30d). The error does not repeat the text.
func ParseDuration(text string) (time.Duration, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	number, isDays := strings.CutSuffix(text, "d")
	seconds, err := strconv.ParseFloat(number, 64)
	if isDays {
		seconds *= day.Seconds()
	}
	if err != nil || !(math.Abs(seconds) < math.MaxInt64/float64(time.Second)) { // nor is NaN a duration
		return 0, errors.New("must be a duration, in seconds or such as 500ms or 30d")
	}
	return time.Duration(math.Round(seconds * float64(time.Second))), nil
}

// readDuration reads a duration of JSON: a number of seconds, or a text with a unit.
func readDuration(v jsontext.Value) (time.Duration, bool) {
	text := string(v)
	switch v.Kind() {
	case jsontext.KindNumber:
	case jsontext.KindString:
		unquoted, _ := jsontext.AppendUnquote(nil, v)
		text = string(unquoted)
		if n, err := strconv.ParseFloat(text, 64); err == nil && n != 0 {
			return 0, false // without a unit it would be a guess
		}
	default:
		return 0, false
	}
	d, err := ParseDuration(text)
	return d, err == nil
}

// formatDuration is the text that ParseDuration reads. It is empty for zero.
func formatDuration(d time.Duration) string {
	switch {
	case d == 0:
		return ""
	case d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
