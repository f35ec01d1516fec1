package store_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// pages reads a list to its end, limit rows at a time.
func pages[Row any](t *testing.T, limit int, read func(event.Page) ([]Row, string, error), name func(Row) string) (names []string) {
	t.Helper()
	page := event.Page{Limit: limit}
	for {
		rows, next, err := read(page)
		require.NoError(t, err)
		require.LessOrEqual(t, len(rows), limit)
		for _, r := range rows {
			names = append(names, name(r))
		}
		if page.Cursor = next; next == "" {
			return names
		}
		require.NotEmpty(t, rows)
	}
}

// A list by status is the list with the others left out, whether its rows are
// among the newest events or far below them.
func TestListsByStatus(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	statuses := []string{"pending", "processing", "completed", "failed", "dead"}
	for i := range 60 {
		if i%20 == 0 {
			d.run("select setval('spine.events_id_seq', $1)", 1+i*1000)
		}
		e := webhook(fmt.Sprint(i), payloadA)
		e.Type, e.Source = fmt.Sprint("type-", i%3), []string{"default", "other"}[i%2]
		d.ingest(e)
	}
	d.run("insert into spine.processing_state (event_id, source, destination) select event_id, source, 'second' from spine.events where id % 4 = 0")
	for i, status := range statuses {
		d.run("update spine.processing_state set status = $1 where (event + length(destination)) % 5 = $2", status, i)
	}
	for _, status := range append(statuses, "") {
		for _, source := range []string{"", "other"} {
			for _, eventType := range []string{"", "type-1"} {
				where := fmt.Sprintf(" where '%s' in ('', status) and '%s' in ('', p.source) and '%s' in ('', event_type)", status, source, eventType)
				const from = " from spine.processing_state p join spine.events e on e.id = p.event"
				processing := d.rows("select p.event || destination" + from + where + " order by p.event desc, destination desc")
				events := d.rows("select e.id" + from + where + " group by e.id order by e.id desc")
				for _, limit := range []int{1, 7, 1000} {
					require.Equal(t, processing, pages(t, limit, func(p event.Page) ([]event.ProcessingRow, string, error) {
						return d.Processing(t.Context(), p, event.ProcessingFilter{Status: status, Source: source, Type: eventType})
					}, func(r event.ProcessingRow) string { return fmt.Sprint(r.Event, r.Destination) }), "processing, %s, limit %d", where, limit)
					require.Equal(t, events, pages(t, limit, func(p event.Page) ([]event.Stored, string, error) {
						return d.Events(t.Context(), p, event.Filter{Status: status, Source: source, Type: eventType})
					}, func(r event.Stored) string { return fmt.Sprint(r.ID) }), "events, %s, limit %d", where, limit)
				}
			}
		}
	}
	rows, next, err := d.Processing(t.Context(), event.Page{Limit: 10}, event.ProcessingFilter{Status: "lost"})
	require.NoError(t, err)
	require.Empty(t, rows)
	require.Empty(t, next)
}
