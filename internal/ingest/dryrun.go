package ingest

import (
	"math"
	"net/http"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// Trial is what would become of a request.
type Trial struct {
	Status   int             // HTTP status of the answer
	Cause    string          // a short word for why it would be rejected; empty where it would not
	Detail   string          // the same in a sentence
	Problems []event.Problem // what is wrong with which field
	Answer   []byte          // body of the answer where the request holds no events
	Events   []event.Event   // that would be stored
}

// DryRun takes a request through the same gate as one from the network and stores nothing. source and lookupErr are
// the two results of Sources.Lookup. The request counts as received at its At. Rate limits do not apply. maxBody is the
// limit on the bytes of its body, before and after decompression.
func DryRun(source Source, lookupErr error, r *event.Request, maxBody int64) Trial {
	g := &gate{
		sources: oneSource{source, lookupErr}, maxBody: maxBody, room: newRoom(math.MaxInt64, maxBody),
		rejectionLog: zerolog.Nop(), turns: newTurns(),
	}
	// oneSource ignores the name that is asked for, and a Trial has none.
	v, rej := g.judge(&arrival{asked: event.DefaultSource, request: *r}, options{})
	switch {
	case rej != nil:
		return Trial{Status: rej.status, Cause: rej.cause, Detail: rej.detail, Problems: rej.problems}
	case len(v.events) == 0:
		return Trial{Status: v.answer.status, Answer: v.answer.body}
	}
	return Trial{Status: http.StatusOK, Events: v.events}
}

// oneSource is the result of a look-up that was made before.
type oneSource struct {
	source Source
	err    error
}

func (s oneSource) Lookup(string) (Source, error) { return s.source, s.err }

func (s oneSource) Stray(string) Stray { return Stray{} }
