// Command progress reads what `go test -json` writes and shows how far it is:
// a line for each package that ends, a line every few seconds for the tests
// that are running, and the whole output of every test that fails.
//
//	go test -json ./... | go run ./internal/systemtest/progress
//
// It exits with 1 if anything failed. It must not hide anything: a line that
// is no event is printed as it came.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// beat is how often the running tests are named. CI logs stay short, and a
// person at a terminal sees that something happens.
const beat = 10 * time.Second

func main() {
	lines := make(chan string)
	broken := make(chan error, 1)
	go func() {
		defer close(lines)
		broken <- readLines(os.Stdin, lines)
	}()
	p := newProgress(os.Stdout, time.Now())
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for open := true; open; {
		var line string
		select {
		case line, open = <-lines:
			if open {
				p.line(line, time.Now())
			}
		case now := <-ticker.C:
			p.running(now)
		}
	}
	if err := <-broken; err != nil {
		fmt.Fprintln(os.Stderr, "progress:", err)
		os.Exit(1)
	}
	if !p.summary(time.Now()) {
		os.Exit(1)
	}
}

// readLines sends each line of in, however long it is.
func readLines(in io.Reader, lines chan<- string) error {
	reader := bufio.NewReader(in)
	for {
		line, err := reader.ReadString('\n')
		if line != "" {
			lines <- strings.TrimSuffix(line, "\n")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading: %w", err)
		}
	}
}

// event is what `go doc test2json` describes.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build
	Test       string // empty for the package itself
	Elapsed    float64
	Output     string
}

// progress is what is known of a run.
type progress struct {
	out      io.Writer
	began    time.Time
	packages map[string]*packageRun
	order    []string // of packages, as they began
	tests    int      // that passed, of all packages
	failed   []string
	skipped  []string
}

// packageRun is what is known of a package whose tests are running.
type packageRun struct {
	started map[string]time.Time // tests that are running now
	paused  map[string]bool      // tests that wait for their turn
	output  map[string][]string  // of tests that have not passed; of the package itself under ""
	tests   int                  // that passed
	failed  bool
}

func newProgress(out io.Writer, began time.Time) *progress {
	return &progress{out: out, began: began, packages: map[string]*packageRun{}}
}

// line takes in one line of input.
func (p *progress) line(line string, now time.Time) {
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Action == "" {
		fmt.Fprintln(p.out, line)
		return
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(p.out, e.Output)
	case "build-fail":
		p.failed = append(p.failed, "build of "+e.ImportPath)
	default:
		r := p.packages[e.Package]
		if r == nil {
			r = &packageRun{started: map[string]time.Time{}, paused: map[string]bool{}, output: map[string][]string{}}
			p.packages[e.Package] = r
			p.order = append(p.order, e.Package)
		}
		p.event(r, e, now)
	}
}

func (p *progress) event(r *packageRun, e event, now time.Time) {
	switch e.Action {
	case "output":
		r.output[e.Test] = append(r.output[e.Test], e.Output)
	case "run", "cont":
		r.started[e.Test] = now
		delete(r.paused, e.Test)
	case "pause":
		delete(r.started, e.Test)
		r.paused[e.Test] = true
	case "pass", "skip", "fail":
		delete(r.started, e.Test)
		if e.Test == "" {
			p.packageEnd(r, e, now)
			return
		}
		switch e.Action {
		case "pass":
			r.tests++
		case "skip":
			p.skipped = append(p.skipped, name(e.Package, e.Test))
		case "fail":
			r.failed = true
			p.failed = append(p.failed, name(e.Package, e.Test))
			p.print(r.output[e.Test])
		}
		delete(r.output, e.Test)
	}
}

// packageEnd prints the package's line. Of one that failed it also prints what
// belongs to no test, and to tests that never came to an end: there a panic or
// the dump after a timeout stands.
func (p *progress) packageEnd(r *packageRun, e event, now time.Time) {
	if e.Action == "fail" {
		for _, test := range slices.Sorted(maps.Keys(r.output)) {
			p.print(r.output[test])
		}
		if !r.failed {
			p.failed = append(p.failed, name(e.Package, ""))
		}
	}
	if e.Action != "skip" { // it has no tests
		fmt.Fprintf(
			p.out,
			"%s  %-4s  %-34s %5d tests %7.1fs\n",
			p.clock(now),
			map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action],
			short(e.Package),
			r.tests,
			e.Elapsed,
		)
	}
	p.tests += r.tests
	delete(p.packages, e.Package)
	p.order = slices.DeleteFunc(p.order, func(name string) bool { return name == e.Package })
}

func (p *progress) print(output []string) {
	for _, text := range output {
		fmt.Fprint(p.out, text)
	}
}

// running names the tests that have been running for longest, two a package.
func (p *progress) running(now time.Time) {
	const most = 2
	var parts []string
	for _, path := range p.order {
		tests := p.packages[path].running()
		part := short(path)
		for i, t := range tests[:min(most, len(tests))] {
			part += []string{": ", ", "}[i] + fmt.Sprintf("%s (%.0fs)", t.name, now.Sub(t.began).Seconds())
		}
		if more := len(tests) - most; more > 0 {
			part += fmt.Sprintf(" and %d more", more)
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		parts = []string{"building"}
	}
	fmt.Fprintf(p.out, "%s  ...   %s\n", p.clock(now), strings.Join(parts, "; "))
}

// runningTest is a test that runs now.
type runningTest struct {
	name  string
	began time.Time
}

// running returns the tests that run now, but for those that wait for a test of
// their own. The longest come first.
func (r *packageRun) running() (running []runningTest) {
	waiting := map[string]bool{}
	tests := slices.AppendSeq(slices.Collect(maps.Keys(r.started)), maps.Keys(r.paused))
	for _, test := range tests {
		for i := strings.LastIndex(test, "/"); i > 0; i = strings.LastIndex(test[:i], "/") {
			waiting[test[:i]] = true
		}
	}
	for test, began := range r.started {
		if !waiting[test] {
			running = append(running, runningTest{test, began})
		}
	}
	slices.SortFunc(running, func(a, b runningTest) int {
		return cmp.Or(a.began.Compare(b.began), strings.Compare(a.name, b.name))
	})
	return running
}

// summary prints the last lines, and says whether all is well.
func (p *progress) summary(now time.Time) bool {
	for _, path := range p.order {
		p.failed = append(p.failed, name(path, "")+" (never ended)")
		for _, test := range slices.Sorted(maps.Keys(p.packages[path].output)) {
			p.print(p.packages[path].output[test])
		}
	}
	for _, test := range p.skipped {
		fmt.Fprintf(p.out, "skipped  %s\n", test)
	}
	for _, test := range p.failed {
		fmt.Fprintf(p.out, "FAILED   %s\n", test)
	}
	if p.tests == 0 && len(p.failed) == 0 {
		fmt.Fprintln(p.out, "FAILED   no test has run")
		return false
	}
	fmt.Fprintf(
		p.out,
		"%s  %d tests passed, %d failed, %d skipped\n",
		p.clock(now),
		p.tests,
		len(p.failed),
		len(p.skipped),
	)
	return len(p.failed) == 0
}

func (p *progress) clock(now time.Time) string {
	s := int(now.Sub(p.began).Seconds())
	return fmt.Sprintf("%3dm%02ds", s/60, s%60)
}

// name is how a person asks for a test: its package, its name.
func name(path, test string) string { return strings.TrimSpace(short(path) + " " + test) }

// short is a package's path within its module.
func short(path string) string {
	_, rest, found := strings.Cut(path, "/spine/")
	if !found {
		return path
	}
	return rest
}
