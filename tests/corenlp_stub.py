"""CoreNLP's two jars as stand-ins that javac makes: a parser for which every word of a text is a noun.

They have the classes that SPICE links with and the names that its check looks for, and nothing of CoreNLP.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile

CODE_ENTRIES = (
    "edu/stanford/nlp/pipeline/StanfordCoreNLP.class",
    "edu/stanford/nlp/semgraph/semgrex/SemgrexPattern.class",
)
MODEL_ENTRIES = (
    "edu/stanford/nlp/models/lexparser/englishPCFG.ser.gz",
    "edu/stanford/nlp/models/ner/english.all.3class.distsim.crf.ser.gz",
)
SOURCES = {
    "ling/IndexedWord": """
        public class IndexedWord {
            private final String word;
            public IndexedWord(String word) { this.word = word; }
            public int index() { return 0; }
            public String lemma() { return word; }
            public String value() { return word; }
        }""",
    "ling/CoreAnnotations": "public class CoreAnnotations { public static class SentencesAnnotation {} }",
    "util/MapFactory": """
        public class MapFactory<K, V> {
            public static <K, V> MapFactory<K, V> hashMapFactory() { return new MapFactory<K, V>(); }
        }""",
    "graph/DirectedMultiGraph": """
        import edu.stanford.nlp.util.MapFactory;
        public class DirectedMultiGraph<V, E> {
            private final java.util.Set<V> vertices = new java.util.LinkedHashSet<V>();
            public DirectedMultiGraph(MapFactory outer, MapFactory inner) {}
            public boolean addVertex(V vertex) { return vertices.add(vertex); }
            public java.util.Set<V> getAllVertices() { return vertices; }
            public java.util.List<E> getAllEdges() { return new java.util.ArrayList<E>(); }
        }""",
    "util/CoreMap": "public interface CoreMap { Object get(Class type); }",
    "pipeline/Annotation": """
        public class Annotation implements edu.stanford.nlp.util.CoreMap {
            private final String text;
            public Annotation(String text) { this.text = text; }
            public Object get(Class type) {
                if (type.getSimpleName().equals("SentencesAnnotation")) {
                    return java.util.Collections.singletonList(this);
                }
                return new edu.stanford.nlp.semgraph.SemanticGraph(text);
            }
        }""",
    "pipeline/StanfordCoreNLP": """
        public class StanfordCoreNLP {
            public StanfordCoreNLP(java.util.Properties properties) {}
            public void annotate(Iterable<Annotation> texts) {}
        }""",
    "semgraph/SemanticGraph": """
        public class SemanticGraph {
            public final String text;
            public SemanticGraph(String text) { this.text = text; }
        }""",
    "semgraph/SemanticGraphCoreAnnotations": """
        public class SemanticGraphCoreAnnotations {
            public static class CollapsedCCProcessedDependenciesAnnotation {}
        }""",
    "semgraph/semgrex/SemgrexPattern": """
        public class SemgrexPattern {
            private final boolean nouns;
            private SemgrexPattern(boolean nouns) { this.nouns = nouns; }
            public static SemgrexPattern compile(String pattern) {
                return new SemgrexPattern(pattern.equals("{tag:/NNP?S?/}=word"));
            }
            public SemgrexMatcher matcher(edu.stanford.nlp.semgraph.SemanticGraph graph) {
                return new SemgrexMatcher(nouns ? graph.text : "");
            }
        }""",
    "semgraph/semgrex/SemgrexMatcher": """
        public class SemgrexMatcher {
            private final java.util.StringTokenizer words;
            private String word;
            public SemgrexMatcher(String text) { words = new java.util.StringTokenizer(text); }
            public boolean find() {
                if (!words.hasMoreTokens()) { return false; }
                word = words.nextToken();
                return true;
            }
            public boolean findNextMatchingNode() { return false; }
            public edu.stanford.nlp.ling.IndexedWord getNode(String name) {
                return new edu.stanford.nlp.ling.IndexedWord(word);
            }
            public String getRelnString(String name) { return ""; }
        }""",
    "trees/GrammaticalRelation": "public class GrammaticalRelation {}",
    "trees/UniversalEnglishGrammaticalRelations": """
        public class UniversalEnglishGrammaticalRelations {
            public static final GrammaticalRelation CASE_MARKER = null;
        }""",
    "scenegraph/SemanticGraphEnhancer": """
        import edu.stanford.nlp.semgraph.SemanticGraph;
        public class SemanticGraphEnhancer {
            public static void processQuanftificationModifiers(SemanticGraph graph) {}
            public static void collapseCompounds(SemanticGraph graph) {}
            public static void collapseParticles(SemanticGraph graph) {}
            public static void resolvePronouns(SemanticGraph graph) {}
        }""",
}


def write_empty_jars(folder, *, code=CODE_ENTRIES, models=MODEL_ENTRIES):
    """Jars with these entries, each of them empty."""
    folder.mkdir(exist_ok=True)
    for name, entries in (("", code), ("-models", models)):
        with zipfile.ZipFile(folder / f"stanford-corenlp-3.6.0{name}.jar", "w") as archive:
            for entry in entries:
                archive.writestr(entry, b"")
    return folder


def write_working_jars(folder, work):
    """Jars with the stand-in parser; needs javac."""
    write_empty_jars(folder)
    files = []
    for name, source in SOURCES.items():
        path = work / "edu" / "stanford" / "nlp" / f"{name}.java"
        path.parent.mkdir(parents=True, exist_ok=True)
        package = str(path.parent.relative_to(work)).replace("/", ".")
        path.write_text(f"package {package};\n{source}\n", encoding="utf-8")
        files.append(str(path))
    made = work / "classes"
    javac = shutil.which("javac")
    subprocess.run([javac, "--release", "8", "-nowarn", "-d", str(made), *files], check=True, capture_output=True)
    with zipfile.ZipFile(folder / "stanford-corenlp-3.6.0.jar", "w") as archive:
        for path in sorted(made.rglob("*.class")):
            archive.write(path, path.relative_to(made).as_posix())
    return folder
