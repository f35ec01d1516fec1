package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ShortDuration is a duration with the digits that matter to a reader.
func ShortDuration(d time.Duration) string {
	switch size := d.Abs(); {
	case size < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case size < time.Second:
		return d.Round(time.Millisecond).String()
	case size < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	case size < 48*time.Hour: // 4m instead of 4m0s, 1h instead of 1h0m0s
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

// Plural is a number with its noun, whose plural adds an s.
func Plural(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.FormatInt(n, 10) + " " + noun
}
