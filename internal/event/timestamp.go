package event

import (
	"fmt"
	"math"
	"time"
)

// Timestamp is a moment as the database holds it. It may be infinite, since an operator may put an event off until
// infinity. In JSON it is an RFC 3339 time in UTC, "infinity" or "-infinity".
type Timestamp struct {
	Time     time.Time // UTC; meaningless where Infinity is not 0
	Infinity int       // -1, 0 or 1
}

// Scan reads a timestamptz as a database driver passes it (database/sql.Scanner).
func (t *Timestamp) Scan(value any) error {
	switch v := value.(type) {
	case time.Time:
		*t = Timestamp{Time: v.UTC()}
		return nil
	case string:
		switch v {
		case "infinity":
			*t = Timestamp{Infinity: 1}
			return nil
		case "-infinity":
			*t = Timestamp{Infinity: -1}
			return nil
		}
	}
	return fmt.Errorf("%v is not a timestamp", value)
}

// String returns the form in JSON, without quotes.
func (t Timestamp) String() string {
	switch {
	case t.Infinity > 0:
		return "infinity"
	case t.Infinity < 0:
		return "-infinity"
	}
	return t.Time.Format(time.RFC3339Nano)
}

// MarshalJSON never fails. That of time.Time fails beyond the year 9999.
func (t Timestamp) MarshalJSON() ([]byte, error) { return []byte(`"` + t.String() + `"`), nil }

// UnixMicro returns microseconds since 1970, the database's resolution. Infinities are the ends of int64, which finite
// times reach only in the year 294247.
func (t Timestamp) UnixMicro() int64 {
	switch {
	case t.Infinity > 0:
		return math.MaxInt64
	case t.Infinity < 0:
		return math.MinInt64
	}
	return t.Time.UnixMicro()
}
