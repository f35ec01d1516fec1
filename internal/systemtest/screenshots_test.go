//go:build screenshots

package systemtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/mockapi"
)

// TestScreenshots makes the pictures of README anew. They show the real program, which receives the webhooks of a
// small shop for a minute. The charts of the time before are filled with the like.
func TestScreenshots(t *testing.T) {
	mock, err := mockapi.New(
		mockapi.Config{Behaviour: mockapi.Behaviour{FailureRate: 0.02, Delay: 15 * time.Millisecond}},
	)
	require.NoError(t, err)
	server := httptest.NewServer(mock)
	t.Cleanup(server.Close)
	s := startService(t, both, databases.New(t), "MOCK_API_URL="+server.URL, "MAX_RETRY_ATTEMPTS=4")
	const shown = "order-10486"
	ctx, stop := context.WithCancel(t.Context())
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		trade(ctx, s, shown)
	}()
	t.Cleanup(func() { stop(); <-sent })

	w := startBrowser(t)
	b := w.tab(t)
	b.open(s.url, "#/")
	await(t, s.db, true, "select count(*) >= 5 from spine.rollups where step = 10 and received > 0")
	b.sees(`document.querySelector('#feed').children.length >= 8`)
	for _, statement := range before {
		execute(t, s.db, statement)
	}
	// The line goes up and down once the page has read the time before.
	b.sees(`new Set(document.querySelector('.drawing .line').getAttribute('d').match(/ [\d.]+/g)).size > 30`)
	for _, p := range []struct {
		name, hash, scheme string
		width, height      int64
	}{
		{"overview", "#/", "light", 1280, 860},
		{"overview", "#/", "dark", 390, 844},
		{"event", "#/event?id=" + shown + "&source=default", "dark", 1280, 860},
		{"events", "#/events", "light", 390, 844},
	} {
		b.colours(p.scheme)
		b.resize(p.width, p.height)
		b.show(p.hash)
		b.settled()
		if p.name == "event" {
			b.sees(
				`document.querySelector('.event-status [data-status=completed]') && document.querySelector('#conflicts')`,
			)
		}
		shot, err := chromedp.Call(b.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{})
		require.NoError(t, err)
		small, err := shrink(shot.Data)
		require.NoError(t, err)
		name := fmt.Sprintf("%s-%d-%s.png", p.name, p.width, p.scheme)
		require.Less(t, len(small), 120_000, name)
		//nolint:gosec // for everyone to read
		require.NoError(
			t,
			os.WriteFile(filepath.Join("..", "..", "internal", "dashboard", "screenshots", name), small, 0o644),
		)
	}
}

// before makes the quarter of an hour before the test one like that of the test.
var before = []string{
	`insert into spine.rollups (
		step, at, source, received, accepted, deduplicated,
		attempts, attempts_failed, delivered, latency)
	select 10, date_bin('10 s', now(), 'epoch') - n * interval '10 s', 'default', i.received, i.received - 1, 1,
		i.received + i.failed, i.failed, i.received - 1, l.latency
	from generate_series(5, 100) n
		cross join lateral (
			select round(36 + 14 * sin(n / 13.0) + 7 * random())::bigint as received,
				round(2 * random())::bigint as failed
		) i
		cross join lateral (
			select r.latency from spine.rollups r
			where r.step = 10 and r.delivered > 5
			order by random() + n * 0
			limit 1
		) l
	on conflict do nothing`,
	`insert into spine.depth_samples (step, at, pending, processing, failed, dead, oldest_ready)
	select 10, date_bin('10 s', now(), 'epoch') - n * interval '10 s', (2 * random())::int, (2 * random())::int,
		greatest(0, 1 + 2 * random() + sin(n / 13.0))::int, 0, random() * interval '20 ms'
	from generate_series(1, 100) n
	on conflict do nothing`,
	`update spine.rollup_state set covered_from = now() - interval '1 hour'`,
}

// trade sends the webhooks of a shop, some of them twice or changed. The event that is shown is the hundred and
// twentieth.
func trade(ctx context.Context, s *target, shown string) {
	types := []string{"order.created", "order.paid", "order.shipped", "customer.updated", "invoice.sent"}
	names := []string{"mara", "jonas", "aiko", "luis", "priya", "tom"}
	send := func(body map[string]any) {
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(body) // strings and numbers are always fine
		_, _ = s.do(ctx, http.MethodPost, "/webhook", &text, "Content-Type", "application/json")
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		pick := func(of int) int { return (n*7919 + n*n*31) % of } // as if by chance, and always the same
		who := names[pick(len(names))]
		payload := map[string]any{
			"customer": map[string]any{
				"name":  who,
				"email": who + "@example.com",
			},
			"amount":   990 + pick(20011),
			"currency": "EUR",
		}
		event := map[string]any{
			"event_id": fmt.Sprintf(
				"%s-%d",
				[]string{"order", "cust", "inv"}[pick(3)],
				10500+n,
			),
			"event_type":  types[pick(len(types))],
			"occurred_at": time.Now().Format(time.RFC3339),
			"payload":     payload,
		}
		switch {
		case n == 120:
			event["event_id"], event["event_type"] = shown, "order.paid"
			payload["mock_api"] = []string{"status=503", "status=429&retry_after=2", "failure_rate=0"}
			send(event)
			send(event)
			payload["amount"] = 1
		case n%90 == 40:
			payload["mock_api"] = []string{"status=422"}
		}
		send(event)
	}
}

// shrink reduces a picture to its 256 most frequent colours.
func shrink(text []byte) ([]byte, error) {
	picture, err := png.Decode(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	bounds := picture.Bounds()
	counts := map[color.RGBA]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[color.RGBAModel.Convert(picture.At(x, y)).(color.RGBA)]++
		}
	}
	ordered := slices.SortedFunc(maps.Keys(counts), func(a, b color.RGBA) int {
		return cmp.Or(counts[b]-counts[a], strings.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	palette := color.Palette{}
	for _, c := range ordered[:min(256, len(ordered))] {
		palette = append(palette, c)
	}
	small := image.NewPaletted(bounds, palette)
	index := map[color.RGBA]uint8{}
	for _, c := range ordered {
		index[c] = uint8(palette.Index(c)) //nolint:gosec // below 256
	}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			small.SetColorIndex(x, y, index[color.RGBAModel.Convert(picture.At(x, y)).(color.RGBA)])
		}
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	err = encoder.Encode(&out, small)
	return out.Bytes(), err
}
