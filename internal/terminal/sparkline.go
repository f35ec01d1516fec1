package terminal

import (
	"math"
	"strings"
)

// Sparkline draws numbers over time in at most room characters, the newest on the right, as parts of the largest. A nil
// number is not known and stays blank.
func Sparkline[N int64 | float64](series []*N, room int) string {
	if room < 1 || len(series) == 0 {
		return ""
	}
	points, most := averages(series, (len(series)+room-1)/room)
	bars := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for i := len(points) - 1; i >= 0; i-- {
		switch point := points[i]; {
		case math.IsNaN(point):
			b.WriteByte(' ')
		case point == 0:
			b.WriteRune(bars[0])
		default: // however little it is, it does not look like nothing
			b.WriteRune(bars[1+min(len(bars)-2, int(point/most*float64(len(bars)-1)))])
		}
	}
	return b.String()
}

// averages takes groups of numbers together, from the newest back, and returns the averages and the largest of them. An
// average is NaN where nothing of its group is known.
func averages[N int64 | float64](series []*N, group int) (points []float64, most float64) {
	for end := len(series); end > 0; end -= group {
		sum, known := 0.0, 0
		for _, n := range series[max(0, end-group):end] {
			if n != nil {
				sum, known = sum+float64(*n), known+1
			}
		}
		point := math.NaN()
		if known > 0 {
			point = sum / float64(known)
			most = max(most, point)
		}
		points = append(points, point)
	}
	return points, most
}
