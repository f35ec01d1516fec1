package dashboard_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/dashboard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

func handler(t *testing.T) http.Handler {
	t.Helper()
	h, err := dashboard.New()
	require.NoError(t, err)
	root := mux.NewRouter().SkipClean(true).UseEncodedPath()
	h.Register(root)
	return root
}

// get asks for path with pairs of header names and values.
func get(t *testing.T, h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	for pair := range slices.Chunk(header, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// sources are the page's files by their name.
func sources(t *testing.T) map[string]string {
	t.Helper()
	files, page := map[string]string{}, os.DirFS("page")
	require.NoError(t, fs.WalkDir(page, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(page, name)
		files[name] = string(text)
		return err
	}))
	require.Contains(t, files, "index.html")
	return files
}

func address(name string) string {
	if name == "index.html" {
		return "/dashboard"
	}
	return "/dashboard/" + name
}

func TestEveryFileIsServedUnderAStrictPolicy(t *testing.T) {
	h := handler(t)
	for name, text := range sources(t) {
		w := get(t, h, address(name))
		require.Equal(t, http.StatusOK, w.Code, name)
		require.Equal(t, text, w.Body.String())
		require.Equal(t, policy, w.Header().Get("Content-Security-Policy"))
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		require.Equal(t, "same-origin", w.Header().Get("Cross-Origin-Resource-Policy"))
		require.Equal(t, "no-referrer", w.Header().Get("Referrer-Policy"))
		require.Equal(t, "no-cache", w.Header().Get("Cache-Control"))
		require.Equal(t, map[string]string{
			".html": "text/html; charset=utf-8",
			".js":   "text/javascript; charset=utf-8",
			".css":  "text/css; charset=utf-8",
			".svg":  "image/svg+xml",
		}[filepath.Ext(name)], w.Header().Get("Content-Type"))
		require.Equal(t, fmt.Sprint(len(text)), w.Header().Get("Content-Length"))
	}
	require.Equal(t, http.StatusNotFound, get(t, h, "/dashboard/index.html").Code)
	require.Equal(t, http.StatusNotFound, get(t, h, "/dashboard/nothing.js").Code)
	require.Equal(t, http.StatusNotFound, get(t, h, "/dashboard/..%2fdashboard.go").Code)
	slash := get(t, h, "/dashboard/")
	require.Equal(t, http.StatusPermanentRedirect, slash.Code)
	require.Equal(t, "../dashboard", slash.Header().Get("Location"))
}

func TestAFileIsSentOnceAndAskedForEachTime(t *testing.T) {
	h := handler(t)
	for name, text := range sources(t) {
		plain := get(t, h, address(name), "Accept-Encoding", "gzip;q=0, br")
		require.Empty(t, plain.Header().Get("Content-Encoding"))
		zipped := get(t, h, address(name), "Accept-Encoding", "br, gzip")
		require.Equal(t, "gzip", zipped.Header().Get("Content-Encoding"))
		require.Equal(t, "Accept-Encoding", zipped.Header().Get("Vary"))
		r, err := gzip.NewReader(zipped.Body)
		require.NoError(t, err)
		unzipped, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, text, string(unzipped))

		tag := plain.Header().Get("ETag")
		require.Regexp(t, `^"[\w-]{16}"$`, tag)
		require.NotEqual(t, tag, zipped.Header().Get("ETag"), "each encoding is another representation")
		for _, given := range []string{tag, `"other", W/` + tag, "*"} {
			again := get(t, h, address(name), "If-None-Match", given)
			require.Equal(t, http.StatusNotModified, again.Code, given)
			require.Empty(t, again.Body.String())
			require.Equal(t, tag, again.Header().Get("ETag"))
		}
		require.Equal(t, http.StatusOK, get(t, h, address(name), "If-None-Match", `"other"`).Code)
	}
}

func TestThePageIsLight(t *testing.T) {
	h := handler(t)
	plain, zipped := 0, 0
	for name := range sources(t) {
		plain += get(t, h, address(name)).Body.Len()
		zipped += get(t, h, address(name), "Accept-Encoding", "gzip").Body.Len()
	}
	t.Logf("%d bytes, %d as browsers get them", plain, zipped)
	require.Less(t, plain, 195_000)
	require.Less(t, zipped, 70_000)
}

func TestTextFromOutsideCannotBecomeMarkup(t *testing.T) {
	// All ways that a script has to turn text into elements or code.
	forbidden := regexp.MustCompile(
		`innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|` +
			`setHTML|parseFromString|` +
			`\beval\(|new Function|javascript:|setAttribute\('on|srcdoc=`,
	)
	inline := regexp.MustCompile(
		`(?i)\son\w+\s*=|\sstyle\s*=|<style|<script(?:>|\s+(?:type="module"\s*)?>)|javascript:|<base|<form|<iframe`,
	)
	elsewhere := regexp.MustCompile(`(?:src|href)="(?:https?:)?//|\burl\(|@import|\bfrom '(?:\.\.|https?:|/)|import\('`)
	for name, text := range sources(t) {
		require.Empty(t, elsewhere.FindAllString(text, -1), name)
		if filepath.Ext(name) == ".js" {
			require.Empty(t, forbidden.FindAllString(text, -1), name)
			require.Empty(t, regexp.MustCompile(`\.style\b`).FindAllString(text, -1), name)
		} else {
			require.Empty(t, inline.FindAllString(text, -1), name)
		}
	}
}

// A name that a module imports and no other exports leaves the whole page empty.
func TestEveryImportIsExported(t *testing.T) {
	files := sources(t)
	exported := regexp.MustCompile(`(?m)^export (?:async )?(?:function|const|let|class) (\w+)`)
	names := map[string][]string{}
	for name, text := range files {
		for _, match := range exported.FindAllStringSubmatch(text, -1) {
			names[name] = append(names[name], match[1])
		}
	}
	imported := regexp.MustCompile(`import \{([^}]*)\} from '\./([^']+)'`)
	imports := 0
	for name, text := range files {
		for _, match := range imported.FindAllStringSubmatch(text, -1) {
			for one := range strings.SplitSeq(match[1], ",") {
				if one = strings.TrimSpace(one); one == "" {
					continue
				}
				imports++
				require.Contains(t, names[match[2]], one, "%s imports it from %s", name, match[2])
				require.Greater(
					t,
					len(regexp.MustCompile(`\b`+one+`\b`).FindAllString(text, 2)),
					1,
					"%s does not use %s",
					name,
					one,
				)
			}
		}
	}
	require.Greater(t, imports, 50)
}

func TestThePageLoadsAllItsModulesAtOnce(t *testing.T) {
	files := sources(t)
	for name := range files {
		if filepath.Ext(name) != ".js" {
			continue
		}
		require.Contains(t, files["index.html"], `"dashboard/`+name+`"`, "a module that is not named is found late")
	}
	links := regexp.MustCompile(`(?:src|href)="dashboard/([^"]+)"`)
	for _, link := range links.FindAllStringSubmatch(files["index.html"], -1) {
		require.Contains(t, files, link[1])
	}
	for name, text := range files {
		for _, imported := range regexp.MustCompile(`from '\./([^']+)'`).FindAllStringSubmatch(text, -1) {
			require.Contains(t, files, imported[1], name)
		}
	}
	for _, path := range []string{"api/overview", "api/events", "api/attempts", "api/audit", "api/processing"} {
		_, noscript, _ := strings.Cut(files["index.html"], "<noscript>")
		require.Contains(t, noscript, `href="`+path, "who runs no scripts is shown where else to look")
	}
}
