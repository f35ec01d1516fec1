package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration shows a duration with the digits that matter to a reader.
func Duration(d time.Duration) string {
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

// Count is a number with its noun, of which plural adds an s.
func Count(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.FormatInt(n, 10) + " " + noun
}
