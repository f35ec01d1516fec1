package trail_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/trail"
)

const (
	migrationFiles = "../../sql/migrations/*.sql"
	viewsFile      = "../../sql/functions/views.sql"
	pageFile       = "../dashboard/page/words.js"
)

// The constants, the list, the enum in the database and the page have the same actions.
func TestActionsAreTheSameInGoSQLAndPage(t *testing.T) {
	t.Parallel()
	actions := trail.Actions()
	require.Equal(t, actions, constants(t), "trail.Actions() is the list of the constants")
	require.Equal(t, actions, enum(t), "the enum spine.audit_action has the actions of package trail, in their order")

	page := readFile(t, pageFile)
	require.Equal(t, actions, words(submatch(t, page, `(?s)const actions = new Set\(\[(.*?)\]`), `[a-z_]+`),
		"the page knows the actions")
	require.ElementsMatch(
		t,
		actions,
		quoted(page, `case '([a-z]+_[a-z_]+)'`),
		"the page has a sentence for each action",
	)
}

// The contract's tests hold which action has which.
func TestSuccessHasTheValuesOfTheView(t *testing.T) {
	t.Parallel()
	branches := submatch(t, readFile(t, viewsFile), `(?s)a\.action::text as action,(.*?)end as success`)
	var values []string
	for _, branch := range regexp.MustCompile(`(?:then|else)\s+'([a-z]+)'`).FindAllStringSubmatch(branches, -1) {
		values = append(values, branch[1])
	}
	require.ElementsMatch(t, []string{trail.Pending, trail.Failure, trail.Success}, values)
}

// constants are the values of the constants of type Action, in their order.
func constants(t *testing.T) (actions []trail.Action) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "action.go", nil, 0)
	require.NoError(t, err)
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); ok && name.Name == "Action" {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			actions = append(actions, trail.Action(value))
		}
		return false
	})
	return actions
}

// enum is spine.audit_action as the migrations leave it.
func enum(t *testing.T) (actions []trail.Action) {
	t.Helper()
	files, err := filepath.Glob(migrationFiles)
	require.NoError(t, err)
	slices.Sort(files)
	comment := regexp.MustCompile(`--.*`)
	for _, file := range files {
		text := comment.ReplaceAllString(readFile(t, file), "")
		for _, created := range quoted(text, `(?s)create type spine\.audit_action as enum \((.*?)\);`) {
			actions = append(actions, words(string(created), `[a-z_]+`)...)
		}
		actions = append(actions, quoted(text, `alter type spine\.audit_action add value '([a-z_]+)'`)...)
	}
	return actions
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name) //nolint:gosec // a file of this repository
	require.NoError(t, err)
	return string(text)
}

// submatch returns what the one group of pattern finds in text first.
func submatch(t *testing.T, text, pattern string) string {
	t.Helper()
	match := regexp.MustCompile(pattern).FindStringSubmatch(text)
	require.Len(t, match, 2, pattern)
	return match[1]
}

// quoted returns what the one group of pattern finds in text.
func quoted(text, pattern string) (actions []trail.Action) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		actions = append(actions, trail.Action(match[1]))
	}
	return actions
}

// words returns what pattern finds in text.
func words(text, pattern string) (actions []trail.Action) {
	for _, match := range regexp.MustCompile(pattern).FindAllString(text, -1) {
		actions = append(actions, trail.Action(match))
	}
	return actions
}
