package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/view"
)

// responder bounds the time of a request and answers it. Each handler embeds one.
type responder struct {
	timeout time.Duration
	log     zerolog.Logger
}

// bounded ends a request's context after the timeout.
func (p responder) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), p.timeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// answer sends the result of a request, or the problem that err stands for.
func (p responder) answer(w http.ResponseWriter, r *http.Request, body any, next view.Next, err error) {
	var notStored *view.NotStoredError
	var ambiguous *view.AmbiguousError
	var noSource *event.NoSourceError
	var badSettings *event.BadSettingsError
	switch {
	case err == nil:
		if next.Cursor != "" {
			query := r.URL.Query()
			query.Set("cursor", next.Cursor)
			w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+query.Encode()+`>; rel="next"`)
		}
		if next.LookedBackTo != nil {
			w.Header().Set("Spine-Looked-Back-To", next.LookedBackTo.String())
		}
		if err := respond.JSON(w, http.StatusOK, body); err != nil {
			p.log.Error().Err(err).Str("path", r.URL.Path).Msg("writing an answer failed")
		}
	case errors.As(err, &notStored):
		missing := respond.Problem{Status: http.StatusNotFound, Detail: notStored.Detail}
		if len(notStored.Explanation) > 0 {
			missing.Explanation = notStored.Explanation
		}
		respond.Reject(w, missing)
	case errors.As(err, &ambiguous):
		example := "?source=" + url.QueryEscape(ambiguous.Sources[0])
		respond.Reject(w, respond.Problem{
			Status:  http.StatusBadRequest,
			Sources: ambiguous.Sources,
			Detail:  "This event_id exists in several sources: name one, as in " + example + ".",
		})
	case errors.Is(err, view.ErrNoDestination):
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: "There is no such destination."})
	case errors.Is(err, event.ErrNotKept):
		respond.Reject(
			w,
			respond.Problem{
				Status: http.StatusNotFound,
				Detail: "This rejected request is not kept: it may have been deleted to make room for newer ones.",
			},
		)
	case errors.Is(err, event.ErrBeginning):
		respond.Reject(w, respond.Problem{
			Status: http.StatusConflict,
			Detail: "Only the beginning of this request's body is kept, so it cannot be replayed.",
		})
	case errors.As(err, &noSource):
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: noSource.Detail})
	case errors.As(err, &badSettings):
		rejected := respond.Problem{
			Status: http.StatusUnprocessableEntity,
			Detail: "The settings are not valid: see errors.",
		}
		for _, problem := range badSettings.Problems {
			rejected.Errors = append(rejected.Errors, respond.Fault{Field: problem.Field, Detail: problem.Detail})
		}
		respond.Reject(w, rejected)
	case errors.Is(err, view.ErrBadCursor):
		rejectQuery(
			w,
			[]respond.Fault{{Parameter: "cursor", Detail: "was not given by this list: start again without it"}},
		)
	case errors.Is(r.Context().Err(), context.Canceled):
		// The client is gone.
	case errors.Is(r.Context().Err(), context.DeadlineExceeded), errors.Is(err, view.ErrTooSlow):
		p.log.Warn().Err(err).Str("path", r.URL.Path).Msg("a request took too long")
		respond.Reject(
			w,
			respond.Problem{
				Status: http.StatusServiceUnavailable,
				Detail: "The database did not answer within " + p.timeout.String() + ".",
			},
		)
	default:
		p.log.Error().Err(err).Str("path", r.URL.Path).Msg("a request failed")
		respond.Reject(
			w,
			respond.Problem{
				Status: http.StatusServiceUnavailable,
				Detail: "The database cannot be " + verb(r) + " now.",
			},
		)
	}
}

// verb says what a request would do with the database.
func verb(r *http.Request) string {
	if mayChange(r) {
		return "written to"
	}
	return "read"
}
