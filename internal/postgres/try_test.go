package postgres
import ("testing";"os";"time";"github.com/rs/zerolog")
func TestTry(t *testing.T) {
	t.Setenv("PATH","/nowhere")
	b := time.Now()
	f, err := Find(t.Context(), FindOptions{root: "/nonexistent", CacheDir: "/var/tmp/pgx/cache", Logger: zerolog.New(os.Stderr)})
	t.Log(f, err, time.Since(b))
	if err == nil { s, err := Start(t.Context(), Options{BinDir: f.Dir}); t.Log(err); if err == nil { t.Log(s.URL(), s.Stop(t.Context())) } }
}
