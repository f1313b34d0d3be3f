# Tidegate: the front door. `make run` builds it and runs it with conf/tidegate.toml.

PREFIX = /usr/local
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/tidegate
SYSCONFDIR = /etc
UNITDIR = $(PREFIX)/lib/systemd/system
DESTDIR =
CARGO = cargo
# Seconds for each fuzz target.
FUZZ_SECONDS = 60
# Seconds of the soak and of the storm.
SOAK_SECONDS = 600
STORM_SECONDS = 60
# Connections of `make nodes`.
NODES = 2000

PROGRAM = $(or $(CARGO_TARGET_DIR),target)/release/tidegate
# The files in conf/ and man/ hold the paths of a plain `make install`. Wherever SYSCONFDIR is, the
# program itself looks in /etc/tidegate, as its manual page says; unit and plist name their file.
PUT_PATHS = sed -i.orig -e 's|/usr/local/bin/|$(BINDIR)/|g' -e 's|/usr/local/share/doc/tidegate/|$(DOCDIR)/|g'
PUT_SYSCONFDIR = -e 's|/etc/tidegate/|$(SYSCONFDIR)/tidegate/|g'

all: $(PROGRAM)

$(PROGRAM): FORCE
	$(CARGO) build --release --locked

run:
	$(CARGO) run --release --locked -- run --config conf/tidegate.toml

test:
	$(CARGO) test --locked

# What a merge needs.
check: man-check
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked

# groff ends with 0 even when it warns: any output is a failure.
man-check:
	@for page in man/*.[1-9]; do \
	  out=$$(groff -mandoc -ww -Tutf8 -z "$$page" 2>&1); \
	  if [ -n "$$out" ]; then echo "$$out"; exit 1; fi; \
	done
	@if command -v mandoc >/dev/null; then mandoc -Tlint -W warning man/*.[1-9]; fi

# Options by BENCH, for example BENCH='--quick' or BENCH=--help.
bench:
	$(CARGO) bench --locked --bench proxy -- $(BENCH)

# Ten minutes of mixed traffic, after which nothing has grown; one of twice the capacity. Both are
# among the tests too, for half a minute and some seconds.
soak:
	TIDEGATE_SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --release --locked --test tests soak:: -- --nocapture

storm:
	TIDEGATE_STORM_SECONDS=$(STORM_SECONDS) $(CARGO) test --release --locked --test tests storm:: -- --nocapture

# Two thousand nodes on WebSocket: memory, fan-out, latency and ticks, and the table of the README.
nodes:
	TIDEGATE_NODES=$(NODES) $(CARGO) test --release --locked --test tests nodes_load:: -- --nocapture

fuzz:
	@cd fuzz && for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

# Never overwrites a configuration that exists. Run `make` first, as a plain user.
install:
	@test -x $(PROGRAM) || { echo "run make first, as a plain user"; exit 1; }
	install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(MANDIR)/man5" "$(DESTDIR)$(MANDIR)/man7" \
	  "$(DESTDIR)$(MANDIR)/man8" \
	  "$(DESTDIR)$(DOCDIR)" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(SYSCONFDIR)/tidegate"
	install -m 0755 $(PROGRAM) "$(DESTDIR)$(BINDIR)/tidegate"
	install -m 0644 man/tidegate.toml.5 "$(DESTDIR)$(MANDIR)/man5/tidegate.toml.5"
	install -m 0644 man/tidegate-nodes.7 "$(DESTDIR)$(MANDIR)/man7/tidegate-nodes.7"
	install -m 0644 man/tidegate-runbook.7 "$(DESTDIR)$(MANDIR)/man7/tidegate-runbook.7"
	install -m 0644 man/tidegate.8 "$(DESTDIR)$(MANDIR)/man8/tidegate.8"
	install -m 0644 conf/tidegate.full.toml "$(DESTDIR)$(DOCDIR)/tidegate.full.toml"
	install -m 0644 conf/tidegate.service "$(DESTDIR)$(UNITDIR)/tidegate.service"
	install -m 0644 conf/org.tidegate.tidegate.plist "$(DESTDIR)$(DOCDIR)/org.tidegate.tidegate.plist"
	$(PUT_PATHS) "$(DESTDIR)$(MANDIR)/man8/tidegate.8"
	$(PUT_PATHS) $(PUT_SYSCONFDIR) "$(DESTDIR)$(UNITDIR)/tidegate.service" \
	  "$(DESTDIR)$(DOCDIR)/org.tidegate.tidegate.plist"
	rm -f "$(DESTDIR)$(MANDIR)/man8/tidegate.8.orig" "$(DESTDIR)$(UNITDIR)/tidegate.service.orig" \
	  "$(DESTDIR)$(DOCDIR)/org.tidegate.tidegate.plist.orig"
	@if [ -e "$(DESTDIR)$(SYSCONFDIR)/tidegate/tidegate.toml" ]; then \
	  echo "kept $(DESTDIR)$(SYSCONFDIR)/tidegate/tidegate.toml"; \
	else \
	  install -m 0644 conf/tidegate.toml "$(DESTDIR)$(SYSCONFDIR)/tidegate/tidegate.toml"; \
	fi

clean:
	$(CARGO) clean

FORCE:
.PHONY: all run test check man-check bench soak storm nodes fuzz install clean FORCE
