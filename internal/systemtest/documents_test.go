package systemtest

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Limits of STYLE: what fits on a screen beside another file, and in a table beside its other columns.
const (
	maxColumns = 120
	maxCell    = 80
)

// documentLines limits the documents that a new reader reads from top to bottom.
var documentLines = map[string]int{"README.md": 200, "DESIGN_NOTES.md": 300}

// mayBeWide are the files that may have lines over maxColumns.
var mayBeWide = []string{
	"sql/schema.sql",               // pg_dump makes it
	"internal/service/settings.go", // a struct tag is one literal and cannot wrap
}

// notOurs are folders of what is built or fetched; so are those whose names begin with a dot.
var notOurs = []string{"bin", "node_modules"}

// repository is the root as a file system, and the paths of the files in it with one of the endings.
func repository(t *testing.T, endings ...string) (root fs.FS, names []string) {
	t.Helper()
	root = os.DirFS(filepath.Join("..", ".."))
	require.NoError(t, fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (strings.HasPrefix(entry.Name(), ".") || slices.Contains(notOurs, name)):
			return fs.SkipDir
		case !entry.IsDir() && slices.Contains(endings, path.Ext(name)):
			names = append(names, name)
		}
		return nil
	}))
	require.NotEmpty(t, names)
	return root, names
}

func textOf(t *testing.T, root fs.FS, name string) string {
	t.Helper()
	text, err := fs.ReadFile(root, name)
	require.NoError(t, err)
	return string(text)
}

// proseLine is a line of Markdown outside of code fences.
type proseLine struct {
	number int
	text   string
}

func (l proseLine) inTable() bool { return strings.HasPrefix(l.text, "|") }

// proseLines returns the lines of a Markdown text that are in no code fence.
func proseLines(text string) (lines []proseLine) {
	fenced := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		} else if !fenced {
			lines = append(lines, proseLine{i + 1, line})
		}
	}
	return lines
}

var (
	inlineCode = regexp.MustCompile("`[^`]*`")
	link       = regexp.MustCompile(`\[([^\[\]]*)\]\(([^()\s]*)\)`)
)

// anchors are the anchors that GitHub gives to the headings of a Markdown text.
func anchors(text string) (all []string) {
	seen := map[string]int{}
	for _, line := range proseLines(text) {
		marks, heading, isHeading := strings.Cut(line.text, " ")
		if !isHeading || marks == "" || strings.Trim(marks, "#") != "" {
			continue
		}
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(link.ReplaceAllString(heading, "$1")))
		if seen[anchor]++; seen[anchor] > 1 {
			anchor = fmt.Sprintf("%s-%d", anchor, seen[anchor]-1)
		}
		all = append(all, anchor)
	}
	return all
}

// Every link from a document to a file or heading of this repository leads there.
func TestDocumentLinks(t *testing.T) {
	root, documents := repository(t, ".md")
	for _, document := range documents {
		for _, line := range proseLines(textOf(t, root, document)) {
			for _, found := range link.FindAllStringSubmatch(inlineCode.ReplaceAllString(line.text, "code"), -1) {
				target, anchor, _ := strings.Cut(found[2], "#")
				if strings.Contains(found[2], "://") {
					continue
				}
				at := document
				if target != "" {
					at = path.Join(path.Dir(document), target)
				}
				if _, err := fs.Stat(root, at); err != nil {
					t.Errorf("%s:%d links to %s: %v", document, line.number, found[2], err)
					continue
				}
				if anchor == "" {
					continue
				}
				assert.Contains(
					t,
					anchors(textOf(t, root, at)),
					anchor,
					"%s:%d links to %s",
					document,
					line.number,
					found[2],
				)
			}
		}
	}
}

// Every section of DESIGN_NOTES.md that a document or a comment names by its number exists. Sections of standards have
// two numbers, or stand behind the name of the standard.
func TestDocumentSections(t *testing.T) {
	section := regexp.MustCompile(`(?i)(?:§|\bsections?) ?(\d+)(?:\.\d)?`)
	standard := regexp.MustCompile(`(?i)\b(?:RFC ?\d+|WHATWG|HTML|CONTRACT)\b`)
	root, files := repository(t, ".md", ".go", ".sql", ".js")
	headings := textOf(t, root, "DESIGN_NOTES.md")
	for _, name := range files {
		for i, line := range strings.Split(textOf(t, root, name), "\n") {
			for _, found := range section.FindAllStringSubmatch(line, -1) {
				if strings.Contains(found[0], ".") || standard.MatchString(line) {
					continue
				}
				assert.Contains(t, headings, "\n## "+found[1]+". ", "%s:%d names %q", name, i+1, found[0])
			}
		}
	}
}

// No line is wider than what fits, but for tables, code fences and links that cannot be wrapped.
func TestDocumentWidths(t *testing.T) {
	root, documents := repository(t, ".md")
	for _, document := range documents {
		text := textOf(t, root, document)
		for _, line := range proseLines(text) {
			if !line.inTable() {
				assert.LessOrEqual(
					t,
					utf8.RuneCountInString(line.text),
					maxColumns,
					"%s:%d is too wide",
					document,
					line.number,
				)
			}
		}
		if most, limited := documentLines[document]; limited {
			assert.LessOrEqual(t, strings.Count(text, "\n"), most, "%s has too many lines", document)
		}
	}
}

// Every table has its separator and as many cells in each row, none of them so long that it hides the others.
func TestDocumentTables(t *testing.T) {
	separator := regexp.MustCompile(`^(?:\| ?:?-+:? ?)+\|$`)
	copied := regexp.MustCompile("^`[^`]*`$") // what a reader copies cannot be said in fewer characters
	root, documents := repository(t, ".md")
	for _, document := range documents {
		row, columns := 0, 0
		for _, line := range proseLines(textOf(t, root, document)) {
			if !line.inTable() {
				row = 0
				continue
			}
			at := fmt.Sprintf("%s:%d", document, line.number)
			cells := tableCells(line.text)
			switch row++; row {
			case 1:
				columns = len(cells)
			case 2:
				assert.Regexp(t, separator, line.text, "%s: a table begins with its head and a separator", at)
			}
			assert.Len(t, cells, columns, at)
			for _, cell := range cells {
				if !copied.MatchString(cell) {
					cell = link.ReplaceAllString(cell, "$1")
					assert.LessOrEqual(t, utf8.RuneCountInString(cell), maxCell, "%s: %s", at, cell)
				}
			}
		}
	}
}

// tableCells are the cells of a row, as they are written.
func tableCells(row string) (cells []string) {
	row = strings.ReplaceAll(strings.TrimSpace(row), `\|`, "¦")
	for cell := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(row, "|"), "|"), "|") {
		cells = append(cells, strings.TrimSpace(cell))
	}
	return cells
}

// Code is as wide as what fits beside other code.
func TestCodeWidths(t *testing.T) {
	root, files := repository(t, ".go", ".sql", ".js")
	for _, name := range files {
		if slices.Contains(mayBeWide, name) {
			continue
		}
		wide := 0
		for i, line := range strings.Split(textOf(t, root, name), "\n") {
			if utf8.RuneCountInString(line) <= maxColumns {
				continue
			}
			if wide++; wide == 1 {
				t.Logf("%s:%d is the first that is too wide", name, i+1)
			}
		}
		assert.Zero(t, wide, "%s has lines over %d columns", name, maxColumns)
	}
}

// The README of a folder that lists its files lists them all, but for tests.
func TestDocumentFiles(t *testing.T) {
	root, files := repository(t, ".go", ".js", ".css", ".html", ".svg")
	for folder, readme := range map[string]string{
		"internal/api":            "internal/api/README.md",
		"internal/dashboard":      "internal/dashboard/README.md",
		"internal/dashboard/page": "internal/dashboard/README.md",
	} {
		listed := textOf(t, root, readme)
		for _, name := range files {
			if path.Dir(name) == folder && !strings.HasSuffix(name, "_test.go") {
				assert.Contains(t, listed, "`"+path.Base(name)+"`", "%s does not list %s", readme, name)
			}
		}
	}
}

// G14: curl knows --json since 7.82 only, and systems that are supported still come with older ones. Whatever tells
// somebody to call curl gives it -H and -d. A command may go on in the next lines.
func TestNoDocumentNeedsANewCurl(t *testing.T) {
	call := regexp.MustCompile(`\bcurl\b`)
	newer := regexp.MustCompile(`^curl\b[^|;]{0,400}?[\s"',]--json\b`)
	needsNewer := func(text string) bool {
		found := newer.FindString(text)
		return found != "" && !strings.Contains(found, "spine ") // a later command of ours knows --json
	}
	require.True(t, needsNewer(`curl http://127.0.0.1:8000/webhook --json '{"event_id":"a"}'`))
	require.True(t, needsNewer("curl http://127.0.0.1:8000/webhook \\\n  --json '{}'"))
	require.False(t, needsNewer("curl http://127.0.0.1:8000/api/events | jq --json"))
	require.False(t, needsNewer("curl http://127.0.0.1:8000/api/events\nspine status --json"))

	root, files := repository(t, ".md", ".go", ".js", ".mjs", ".html", ".yaml", ".yml", ".sql", ".txtar", ".txt", "")
	calls := 0
	for _, name := range files {
		if name == "internal/systemtest/documents_test.go" {
			continue
		}
		text := textOf(t, root, name)
		for _, at := range call.FindAllStringIndex(text, -1) {
			calls++
			line := strings.Count(text[:at[0]], "\n") + 1
			assert.False(t, needsNewer(text[at[0]:]), "%s:%d calls curl with --json", name, line)
		}
	}
	require.Greater(t, calls, 5)
}

// README's tour of folders has every package below internal.
func TestDocumentTour(t *testing.T) {
	root, _ := repository(t, ".md")
	readme := textOf(t, root, "README.md")
	folders, err := fs.ReadDir(root, "internal")
	require.NoError(t, err)
	for _, folder := range folders {
		assert.Contains(
			t,
			readme,
			"`internal/"+folder.Name()+"`",
			"README.md does not say what is in internal/%s",
			folder.Name(),
		)
	}
}
